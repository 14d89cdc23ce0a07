"""Every network that can be built is loaded with the outputs that it was saved with."""

import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import timm
import torch
from torch import nn

from eca_hub import create_model, list_models, load_pretrained, save_pretrained
from eca_hub.errors import InvalidConfig
from eca_hub.hub.package import Package
from eca_hub.hub.pretrained import read_package

LABELS = ["cat", "dog", "eel"]

MAX_PARAMETERS = 100_000_000
"""Larger members of a family differ from smaller ones in widths and depths only."""

# Buffers outside the state dict: low-pass filters, index tables and masks of windows, rotary positions.
COMPUTED_BUFFERS = [
    "levit_128s",
    *(
        pytest.param(name, marks=pytest.mark.soak)
        for name in (
            "resnetblur18",
            "swin_tiny_patch4_window7_224",
            "swinv2_cr_tiny_ns_224",
            "vit_small_patch16_rope_224",
            "coatnet_nano_rw_224",
            "mobilevitv2_050",
        )
    ),
]


def randomize(model: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            if name.endswith("running_var"):
                tensor.uniform_(0.5, 1.5)
            else:
                tensor.normal_(std=0.05)
    return model.eval()


def difference(model: nn.Module, loaded: nn.Module, input_size: tuple[int, ...]) -> float:
    pixels = torch.randn(1, *input_size)
    with torch.inference_mode():
        expected, actual = model(pixels), loaded(pixels)
    assert torch.isfinite(expected).all()
    return float((expected - actual).abs().max() / expected.abs().max().clamp(min=1e-12))


def check_timm_network(name: str) -> None:
    """As timm's save_for_hf writes it, but in memory."""
    model = randomize(timm.create_model(name, num_classes=len(LABELS)))
    cfg: Any = model.default_cfg
    document = {
        "architecture": name,
        "num_classes": len(LABELS),
        "label_names": LABELS,
        "pretrained_cfg": {key: cfg[key] for key in ("mean", "std", "input_size")},
    }
    weights = safetensors.torch.save({key: tensor.contiguous().clone() for key, tensor in model.state_dict().items()})
    loaded, _ = read_package(Package(name, "0" * 40, json.dumps(document).encode(), weights))
    assert difference(model, loaded, cfg["input_size"]) <= 1e-6, name


@pytest.mark.parametrize("name", COMPUTED_BUFFERS)
def test_a_network_with_computed_buffers_keeps_its_outputs(name: str) -> None:
    check_timm_network(name)


@pytest.mark.slow
def test_a_network_with_attention_and_computed_buffers_keeps_its_outputs(tmp_path: Path) -> None:
    model = randomize(create_model("eca_resnetblur18", num_classes=3))
    loaded, _ = load_pretrained(save_pretrained(model, tmp_path / "package", labels=LABELS))
    assert difference(model, loaded, (3, 64, 64)) <= 1e-6


@pytest.mark.slow
def test_a_network_with_shared_weights_is_saved(tmp_path: Path) -> None:
    model = randomize(create_model("coat_lite_tiny", num_classes=3))
    loaded, _ = load_pretrained(save_pretrained(model, tmp_path / "package", labels=LABELS))
    assert difference(model, loaded, (3, 224, 224)) <= 1e-6


@pytest.mark.parametrize(
    "name", ["gsop_resnet20", *(pytest.param(name, marks=pytest.mark.slow) for name in ("cbam_resnet20", "resnet32"))]
)
def test_networks_of_this_library_keep_their_outputs(name: str, tmp_path: Path) -> None:
    check_network(name, tmp_path)


def check_network(name: str, folder: Path) -> None:
    try:
        model = randomize(create_model(name, num_classes=3))
    except InvalidConfig:
        assert name not in list_models(), name
        return
    loaded, _ = load_pretrained(save_pretrained(model, folder / name, labels=LABELS))
    assert difference(model, loaded, (3, 64, 64) if "inception" not in name else (3, 299, 299)) <= 1e-6, name


@pytest.mark.soak
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", list_models())
def test_every_network_of_this_library_keeps_its_outputs(name: str, tmp_path: Path) -> None:
    check_network(name, tmp_path)


@pytest.mark.soak
@pytest.mark.parametrize("name", timm.list_models())
def test_every_network_of_timm_keeps_its_outputs(name: str) -> None:
    with torch.device("meta"):
        num_parameters = sum(each.numel() for each in timm.create_model(name).parameters())
    if num_parameters > MAX_PARAMETERS:
        pytest.skip(f"{num_parameters} parameters")
    check_timm_network(name)
