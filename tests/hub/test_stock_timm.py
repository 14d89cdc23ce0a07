"""Export to timm: stock timm loads what it can express, with the same outputs; the rest is refused with a reason."""

import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import timm
import torch
from torch import nn

from eca_hub import ImageConfig, ModelConfig, create_model, load_pretrained
from eca_hub.commands.convert import main
from eca_hub.errors import InvalidConfig
from eca_hub.hub.pretrained import export_to_timm, save_pretrained
from eca_hub.hub.stock_timm import to_stock_timm
from eca_hub.models.build import build_model
from tests.hub import ecanet
from tests.hub.convert.test_checkpoint import difference

LABELS = ("cat", "dog", "eel")


def made(architecture: str, attention: str = "eca", **options: Any) -> tuple[nn.Module, ModelConfig]:
    torch.manual_seed(0)
    config = ModelConfig(architecture, attention, options, labels=LABELS)
    return ecanet.randomize(build_model(config)), config


@pytest.mark.slow
def test_a_released_network_is_exactly_stock_timms(tmp_path: Path) -> None:
    official = ecanet.make("resnet50")
    torch.save(ecanet.released(official), tmp_path / "eca_resnet50.pth.tar")
    assert main([str(tmp_path / "eca_resnet50.pth.tar"), "--to", str(tmp_path / "timm"), "--format", "timm"]) == 0
    stock = timm.create_model("resnet50", block_args={"attn_layer": "eca"})
    stock.load_state_dict(safetensors.torch.load_file(tmp_path / "timm" / "model.safetensors"), strict=True)
    assert difference(official, stock, side_px=96) == 0.0


@pytest.mark.parametrize(
    "name",
    [pytest.param(f"resnet{depth}", marks=pytest.mark.slow) for depth in (50, 101, 152)],
)
def test_released_kernels_of_the_deep_networks_fit(name: str) -> None:
    model, config = made(name, kernel_sizes="released")
    stock, model_args = to_stock_timm(model, config)
    assert model_args == {"block_args": {"attn_layer": "eca"}}
    assert difference(model, stock) <= 1e-6


@pytest.mark.parametrize(
    ("architecture", "attention", "options"),
    [
        pytest.param("resnet18", "eca", {}, marks=pytest.mark.slow),
        pytest.param("resnet18", "none", {}, marks=pytest.mark.slow),
        ("resnet18", "se", {"bias": True, "min_hidden": 8}),
        pytest.param("resnet18", "se", {}, marks=pytest.mark.slow),
        pytest.param("resnet50", "se", {}, marks=pytest.mark.slow),
        pytest.param("resnet34", "eca", {"kernel_sizes": 3}, marks=pytest.mark.slow),
        pytest.param("ecaresnet26t", "none", {}, marks=pytest.mark.slow),
    ],
)
def test_what_timm_can_build_keeps_its_outputs(
    architecture: str, attention: str, options: dict[str, Any], tmp_path: Path
) -> None:
    model, config = made(architecture, attention, **options)
    export_to_timm(model, tmp_path / "timm", config=config)
    stock = timm.create_model(f"local-dir:{tmp_path / 'timm'}", pretrained=True)
    assert type(stock).__module__.startswith("timm.")
    assert difference(model, stock) <= 1e-6


@pytest.mark.parametrize(
    ("architecture", "attention", "options"),
    [
        ("resnet18", "eca", {"stages": [3, 4]}),
        pytest.param("resnet18", "se", {"stages": [1]}, marks=pytest.mark.slow),
        pytest.param("efficientnet_b0", "eca", {}, marks=pytest.mark.slow),
        pytest.param("nf_resnet26", "eca", {}, marks=pytest.mark.slow),
    ],
)
def test_a_network_that_timm_cannot_build_is_saved_in_the_format_of_this_library(
    architecture: str, attention: str, options: dict[str, Any], tmp_path: Path
) -> None:
    model, config = made(architecture, attention, **options)
    loaded, _ = load_pretrained(save_pretrained(model, tmp_path / "package", config=config))
    assert difference(model, loaded) == 0.0
    assert "timm" not in (tmp_path / "package" / "README.md").read_text().partition("## Network")[0]


@pytest.mark.parametrize(
    ("architecture", "attention"),
    [
        ("resnet18", "eca"),
        *(
            pytest.param(*names, marks=pytest.mark.slow)
            for names in [
                ("resnet18", "none"),
                ("resnet18", "se"),
                ("efficientnet_b0", "none"),
                ("ecaresnet26t", "eca"),
            ]
        ),
    ],
)
def test_a_gray_network_keeps_its_outputs_in_timm_and_here(architecture: str, attention: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    image = ImageConfig(in_chans=1, mean=(0.5,), std=(0.5,))
    model = ecanet.randomize(build_model(ModelConfig(architecture, attention, labels=LABELS, image=image)))
    export_to_timm(model, tmp_path / "timm")
    stock = timm.create_model(f"local-dir:{tmp_path / 'timm'}", pretrained=True).eval()
    loaded, config = load_pretrained(tmp_path / "timm")
    assert config.image == image
    pixels = torch.randn(2, 1, 64, 64)
    with torch.inference_mode():
        expected = model(pixels)
        assert torch.allclose(stock(pixels), expected, rtol=1e-5, atol=1e-6)
        assert torch.allclose(loaded(pixels), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("architecture", "attention", "options", "reason"),
    [
        ("resnet18", "eca", {"kernel_sizes": "released"}, "layer3.0.se.conv.weight has size 7, timm's rule gives 5"),
        pytest.param(
            "resnet34",
            "eca",
            {"kernel_sizes": "released"},
            "layer4.0.se.conv.weight has size 7, timm's rule gives 5",
            marks=pytest.mark.slow,
        ),
        ("mobilenet_v2", "eca", {"kernel_sizes": "released"}, "no attention after the projection"),
        ("resnet20", "eca", {}, "timm has no network 'resnet20'"),
        ("resnet18", "cbam", {}, "it has no attention 'cbam'"),
        ("resnet18", "se", {"reduction": 2}, "is (32, 64, 1, 1), wider than timm's (8, 64, 1, 1)"),
        ("resnet18", "eca", {"stages": [3, 4]}, "timm's network has layer1.0.se.conv.weight as well"),
        ("resnet18", "se", {"stages": [3, 4]}, "timm's network has layer1.0.se.fc1.bias as well"),
        ("efficientnet_b0", "eca", {}, "it does not take {'block_args': {'attn_layer': 'eca'}}: TypeError"),
        pytest.param("nf_resnet26", "eca", {}, "it does not take", marks=pytest.mark.slow),
        pytest.param("res2net50_26w_6s", "eca", {}, "it does not take", marks=pytest.mark.slow),
    ],
)
def test_what_timm_cannot_build_is_refused_with_the_reason(
    architecture: str, attention: str, options: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    model, config = made(architecture, attention, **options)
    with pytest.raises(InvalidConfig) as refusal:
        export_to_timm(model, tmp_path / "timm", config=config)
    assert reason in str(refusal.value)
    assert not list(tmp_path.iterdir())


def test_a_small_stem_is_refused() -> None:
    model = create_model("resnet18", num_classes=3, stem="small")
    with pytest.raises(InvalidConfig, match="no small stem"):
        to_stock_timm(model, ModelConfig("resnet18", "none", labels=LABELS, stem="small"))


def test_the_config_has_all_that_timm_needs_and_nothing_of_other_weights(tmp_path: Path) -> None:
    model, config = made("resnet18")
    export_to_timm(model, tmp_path / "timm", config=config)
    assert {path.name for path in (tmp_path / "timm").iterdir()} == {"config.json", "model.safetensors", "README.md"}
    document = json.loads((tmp_path / "timm" / "config.json").read_text())
    assert document["label_names"] == list(LABELS)
    assert document["model_args"] == {"block_args": {"attn_layer": "eca"}}
    assert not {"tag", "paper_ids", "test_input_size", "url"} & set(document["pretrained_cfg"])
    stock = timm.create_model(f"local-dir:{tmp_path / 'timm'}", pretrained=True)
    assert stock.num_classes == 3
    assert stock.default_cfg["crop_pct"] == config.image.crop  # type: ignore[index]
    assert "library_name: timm" in (tmp_path / "timm" / "README.md").read_text()


def test_a_package_is_exported_by_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, config = made("resnet18")
    package = save_pretrained(model, tmp_path / "package", config=config)
    assert main([str(package), "--to", str(tmp_path / "timm"), "--format", "timm"]) == 0
    assert "local-dir:" in capsys.readouterr().out
    stock = timm.create_model(f"local-dir:{tmp_path / 'timm'}", pretrained=True)
    assert difference(model, stock) <= 1e-6
