"""The part that only a GPU can run: graphs, streams and number formats, held against the plain network."""

import threading

import pytest
import torch

from eca_service.optimize.optimize import optimize_model
from eca_service.settings import Precision
from tests.service.optimize.test_optimize import classifier, images

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no CUDA device"),
]


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16", "auto"])
def test_every_batch_size_gives_the_outputs_of_the_library(precision: Precision) -> None:
    on_cpu, on_gpu = classifier(), classifier()
    on_gpu.model.cuda()
    prepared = optimize_model(on_gpu, precision)
    forward = prepared.new_forwards()["classify"]
    for number in (1, 3, 8, 3):
        expected = on_cpu.probabilities(images(number))
        with torch.inference_mode():
            found = forward(images(number)).softmax(1)
        assert found.device.type == "cpu"
        assert torch.allclose(found, expected, atol=1e-3 if precision == "fp32" else 2e-2)


def test_two_engines_record_and_run_beside_each_other() -> None:
    on_gpu = classifier()
    on_gpu.model.cuda()
    prepared = optimize_model(on_gpu, "fp32")
    expected = classifier().probabilities(images(8))
    found: list[torch.Tensor] = []

    def work() -> None:
        forward = prepared.new_forwards()["classify"]
        with torch.inference_mode():
            found.extend(forward(images(8)).softmax(1) for _ in range(20))

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 40
    assert all(torch.allclose(one, expected, atol=1e-3) for one in found)


def test_compiled_on_a_gpu_it_has_the_same_outputs() -> None:
    on_gpu = classifier()
    on_gpu.model.cuda()
    prepared = optimize_model(on_gpu, "fp32", compiled=True)
    with torch.inference_mode():
        found = prepared.new_forwards()["classify"](images(3)).softmax(1)
    assert torch.allclose(found, classifier().probabilities(images(3)), atol=1e-3)
