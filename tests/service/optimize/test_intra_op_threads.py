"""An image that is alone gets all cores; any other batch gets one."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor

from eca_service.optimize.intra_op_threads import IntraOpThreads, share_cores

ONE, TWO = torch.zeros(1, 3, 2, 2), torch.zeros(2, 3, 2, 2)


@pytest.fixture(autouse=True)
def threads_as_before() -> object:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def count_cores(pixels_N3HW: Tensor) -> Tensor:
    return torch.tensor(torch.get_num_threads())


def test_a_single_image_uses_all_cores_and_restores_the_number_of_threads() -> None:
    run = share_cores(count_cores, 2, IntraOpThreads())
    assert run(ONE).item() == 2
    assert torch.get_num_threads() == 1
    assert run(ONE).item() == 2, "the batch before has ended"


def test_a_batch_has_one_core() -> None:
    assert share_cores(count_cores, 2, IntraOpThreads())(TWO).item() == 1


def test_an_image_uses_one_core_while_another_batch_runs() -> None:
    cores, is_inside, may_end = IntraOpThreads(), threading.Event(), threading.Event()

    def wait(pixels_N3HW: Tensor) -> Tensor:
        is_inside.set()
        assert may_end.wait(60)
        return count_cores(pixels_N3HW)

    with ThreadPoolExecutor(1) as other:
        working = other.submit(share_cores(wait, 2, cores), TWO)
        assert is_inside.wait(60)
        assert share_cores(count_cores, 2, cores)(ONE).item() == 1
        may_end.set()
        working.result()
    assert share_cores(count_cores, 2, cores)(ONE).item() == 2


def test_an_error_gives_the_cores_back() -> None:
    cores = IntraOpThreads()

    def fail(pixels_N3HW: Tensor) -> Tensor:
        raise ArithmeticError("a logit is not a number")

    with pytest.raises(ArithmeticError):
        share_cores(fail, 2, cores)(ONE)
    assert torch.get_num_threads() == 1
    assert share_cores(count_cores, 2, cores)(ONE).item() == 2
