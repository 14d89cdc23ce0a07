"""Merging norms and activations into convolutions, compared with the plain network."""

import copy
import threading

import pytest
import torch
from torch import Tensor, nn

from eca_service.optimize.fuse import (
    PackedConvolution,
    can_pack,
    fold_norms,
    observe_convolutions,
    pack_convolutions,
)


def folded_copy(model: nn.Module, x: Tensor) -> nn.Module:
    copied = copy.deepcopy(model)
    fold_norms(copied, observe_convolutions(copied, x))
    return copied


def norms_in(module: nn.Module) -> int:
    return sum(isinstance(child, nn.BatchNorm2d) for child in module.modules())


class Shared(nn.Module):
    """One convolution that is used twice, and one whose output is wanted without its norm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)
        self.other = nn.Conv2d(3, 3, 1)
        self.norm = nn.BatchNorm2d(3)
        self.last = nn.BatchNorm2d(3)
        nn.init.constant_(self.norm.weight, 2.0)

    def forward(self, x: Tensor) -> Tensor:
        once = self.norm(self.conv(x))
        twice = self.conv(once)
        open_end = self.other(twice)
        result: Tensor = self.last(open_end) + open_end
        return result


def test_a_norm_is_only_folded_where_nothing_else_sees_the_convolution() -> None:
    model = Shared().eval()
    x = torch.randn(2, 3, 4, 4)
    folded = folded_copy(model, x)
    assert norms_in(folded) == 2
    assert torch.allclose(folded(x), model(x), atol=1e-6)


class Branching(nn.Module):
    """A network whose way depends on what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.norm(x) if x.sum() > 0 else x
        return result


def test_a_norm_without_a_convolution_stays() -> None:
    model = Branching().eval()
    folded = folded_copy(model, torch.ones(1, 3, 2, 2))
    assert folded is not model
    assert norms_in(folded) == 1


class ChangedOnTheWay(nn.Module):
    """A convolution whose output is not what the norm gets, though it is the same tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)
        self.norm = nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.norm(self.conv(x).relu_())
        return result


def test_a_norm_stays_where_something_happens_in_between() -> None:
    model = ChangedOnTheWay().eval()
    x = torch.randn(2, 3, 4, 4)
    folded = folded_copy(model, x)
    assert norms_in(folded) == 1
    assert torch.allclose(folded(x), model(x), atol=1e-6)


def test_while_norms_are_folded_other_networks_go_on_in_other_threads() -> None:
    other = nn.Sequential(nn.Linear(2, 2)).eval()
    errors: list[BaseException] = []

    class Calling(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            def send() -> None:
                try:
                    other(torch.zeros(1, 2))
                except BaseException as error:
                    errors.append(error)

            thread = threading.Thread(target=send)
            thread.start()
            thread.join()
            return x

    folded_copy(Calling(), torch.zeros(1, 3, 2, 2))
    assert not errors


def packed_in(module: nn.Module) -> int:
    return sum(isinstance(child, PackedConvolution) for child in module.modules())


needs_packing = pytest.mark.skipif(not can_pack(), reason="this torch has no oneDNN")


@needs_packing
def test_every_convolution_is_packed_and_takes_the_relu_that_only_it_feeds() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(inplace=True), nn.Conv2d(8, 8, 1, groups=2)).eval()
    x = torch.randn(2, 3, 8, 8)
    expected = model(x).detach()
    pack_convolutions(model, observe_convolutions(model, x[:1]), len(x))
    assert packed_in(model) == 2
    assert not any(isinstance(module, nn.ReLU) for module in model.modules())
    assert torch.allclose(model(x), expected, atol=1e-6)
    assert torch.allclose(model(x[:1]), expected[:1], atol=1e-6), "another batch size than it was packed for"


@needs_packing
def test_one_run_finds_the_norm_behind_a_convolution_and_the_relu_behind_the_norm() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.Conv2d(8, 4, 1)).eval()
    nn.init.uniform_(model[1].weight, 0.5, 2.0)  # type: ignore[arg-type]
    x = torch.randn(2, 3, 8, 8)
    expected = model(x).detach()
    flow = observe_convolutions(model, x[:1])
    fold_norms(model, flow)
    pack_convolutions(model, flow, len(x))
    assert [type(module) for module in model] == [PackedConvolution, nn.Identity, nn.Identity, PackedConvolution]
    assert torch.allclose(model(x), expected, atol=1e-5)


class SharedRelu(nn.Module):
    """One ReLU for two convolutions, as torchvision's blocks have it, and a convolution whose output two read."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)
        self.shared, self.own = nn.ReLU(inplace=True), nn.ReLU()
        self.last = nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.last(self.shared(self.second(self.shared(self.first(x)))))
        result: Tensor = self.own(y) - y
        return result


@needs_packing
def test_a_relu_stays_where_it_serves_others_or_others_read_what_it_reads() -> None:
    model = SharedRelu().eval()
    x = torch.randn(2, 3, 4, 4)
    expected = model(x).detach()
    pack_convolutions(model, observe_convolutions(model, x[:1]), len(x))
    assert packed_in(model) == 3
    assert sum(isinstance(module, nn.ReLU) for module in model.modules()) == 2
    assert torch.allclose(model(x), expected, atol=1e-6)


@needs_packing
def test_a_convolution_with_other_padding_than_zeros_is_not_packed() -> None:
    model = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1, padding_mode="reflect"), nn.Conv2d(3, 3, 3, padding="same"))
    x = torch.randn(1, 3, 8, 8)
    expected = model(x).detach()
    pack_convolutions(model, observe_convolutions(model, x[:1]), len(x))
    assert packed_in(model) == 0
    assert torch.allclose(model(x), expected, atol=1e-6)
