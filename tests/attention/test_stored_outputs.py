"""Each method still gives the output that was stored when it was checked against its formula.

Input and weights are sines of their positions, so the fixture holds outputs only and does not depend on a random number
generator. To add a method: `python -m tests.attention.test_stored_outputs` writes the file anew.
"""

import json
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from eca_hub.attention import ATTENTIONS
from eca_hub.attention.insertion import ReplaceConv

FIXTURE = Path(__file__).parent / "fixtures" / "outputs.json"
CHANNELS = 32


def sines(shape: torch.Size, speed: float) -> Tensor:
    return torch.sin(torch.arange(shape.numel(), dtype=torch.float64) * speed).reshape(shape)


def output_of(name: str) -> Tensor:
    method = ATTENTIONS[name]
    options = (
        {"in_channels": CHANNELS, "stride": 1}
        if isinstance(getattr(method, "insertion_point", None), ReplaceConv)
        else {}
    )
    layer: nn.Module = method(CHANNELS, **options).double().eval()
    with torch.no_grad():
        for number, parameter in enumerate(layer.parameters()):
            parameter.copy_(0.3 * sines(parameter.shape, 0.7 + number))
        output: Tensor = layer(2 * sines(torch.Size((1, CHANNELS, 3, 3)), 1.3))
    return output


def test_every_method_has_a_stored_output() -> None:
    assert set(json.loads(FIXTURE.read_text())) == set(ATTENTIONS)


@pytest.mark.parametrize("name", ATTENTIONS)
def test_the_output_is_the_stored_one(name: str) -> None:
    stored = torch.tensor(json.loads(FIXTURE.read_text())[name], dtype=torch.float64)
    torch.testing.assert_close(output_of(name).flatten(), stored, rtol=0, atol=2e-6)


if __name__ == "__main__":
    outputs = {name: [round(value, 6) for value in output_of(name).flatten().tolist()] for name in ATTENTIONS}
    FIXTURE.write_text(json.dumps(outputs) + "\n")
    sys.exit(0)
