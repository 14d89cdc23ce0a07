"""The exponential moving average of the weights: its formula, its precision, and its place in a validation."""

import pytest
import torch
from torch import nn

from eca_hub.train.ema import EMA


def test_the_average_follows_its_formula_from_the_first_step_on() -> None:
    """The decay rises from 2/11 as (1 + n) / (10 + n), as in TensorFlow, up to the given one."""
    model = nn.Linear(1, 1)
    ema = EMA(model, 0.5)
    expected = model.weight.detach().clone()
    for step in range(1, 20):
        with torch.no_grad():
            model.weight.fill_(step)
        ema.update(model, step)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * step
        torch.testing.assert_close(ema.weights["weight"], expected)


def test_the_network_computes_with_the_average_between_swap_in_and_swap_out() -> None:
    linear = nn.Linear(2, 2)
    model = nn.Sequential(linear, nn.BatchNorm1d(2)).eval()
    ema = EMA(model, 0.5)
    before = linear.weight.detach().clone()
    with torch.no_grad():
        linear.weight.add_(1)
    ema.update(model, step=1000)
    own = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for _ in range(2):
        ema.swap_in(model)
    torch.testing.assert_close(linear.weight.detach(), before + 0.5)
    for _ in range(2):
        ema.swap_out(model)
    assert all(torch.equal(tensor, own[name]) for name, tensor in model.state_dict().items())
    torch.testing.assert_close(ema.full_weights()["0.weight"], before + 0.5)


def test_an_average_in_float64_is_loaded_to_the_bit() -> None:
    model = nn.Linear(1, 1, bias=False)
    ema = EMA(model, 0.9)
    saved = {"weight": torch.full((1, 1), 1 / 3, dtype=torch.float64)}
    ema.load(saved)
    assert torch.equal(ema.weights["weight"], saved["weight"])


@pytest.mark.parametrize(("dtype", "kept"), [(torch.bfloat16, torch.float32), (torch.float64, torch.float64)])
def test_the_average_of_a_network_of_another_precision_loses_no_update(dtype: torch.dtype, kept: torch.dtype) -> None:
    model = nn.Linear(1, 1, bias=False)
    ema = EMA(model, 0.9999)
    model.to(dtype)
    with torch.no_grad():
        model.weight.fill_(1)
    ema.weights["weight"].fill_(2)
    for _ in range(100):
        ema.update(model, step=10**6)
    assert ema.weights["weight"].dtype == kept
    assert float(ema.weights["weight"]) == pytest.approx(1 + 0.9999**100, abs=1e-4)
    ema.swap_in(model)
    assert model.weight.dtype == dtype
