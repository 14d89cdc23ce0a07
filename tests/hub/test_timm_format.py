"""Stock timm's repositories load here, and what is saved here loads in stock timm: with the same outputs, both ways."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from huggingface_hub import HfApi
from safetensors.torch import load_file, save_file
from timm.models import save_for_hf

from eca_hub import Classifier, ImageConfig, ModelConfig, create_model, load_pretrained, save_pretrained
from eca_hub.commands.convert import main
from eca_hub.errors import CheckpointMismatch, EcaHubError, InvalidPackage
from eca_hub.hub.push import push_folder
from tests.conftest import make_image
from tests.hub import ecanet
from tests.localhub.hub_process import Hub

LABELS = ["cat", "dog", "eel"]
SMALL = {"input_size": (3, 64, 64), "crop_pct": 0.9, "interpolation": "bicubic", "mean": (0.5,) * 3, "std": (0.5,) * 3}


def stock_repository(folder: Path, name: str = "ecaresnet26t", **options: Any) -> torch.nn.Module:
    """Let stock timm write a repository, as its authors publish theirs."""
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=options.pop("num_classes", 3), pretrained_cfg_overlay=SMALL, **options)
    ecanet.randomize(model).eval()
    names = {"label_names": LABELS} if model.num_classes == 3 else {}
    save_for_hf(model, str(folder), model_config=names, safe_serialization=True)
    (folder / "README.md").write_text("---\nlibrary_name: timm\n---\n")
    return model


def stock_probabilities(model: torch.nn.Module, image: bytes) -> torch.Tensor:
    """Classify as timm's users do: its own transform, its own network."""
    import io

    from PIL import Image
    from timm.data import create_transform, resolve_data_config

    transform = create_transform(**resolve_data_config(model.pretrained_cfg, model=model))  # type: ignore
    decoded = Image.open(io.BytesIO(image)).convert("RGB")
    with torch.inference_mode():
        return model(transform(decoded)[None]).softmax(1)[0]  # type: ignore[no-any-return]


@pytest.mark.slow
def test_a_stock_timm_repository_on_the_hub_classifies_as_timm_does(hub: Hub, tmp_path: Path) -> None:
    model = stock_repository(tmp_path / "stock")
    api = HfApi(endpoint=hub.url, token=hub.token)
    api.create_repo("timm/ecaresnet26t.test_in1k")
    api.upload_folder(folder_path=tmp_path / "stock", repo_id="timm/ecaresnet26t.test_in1k")
    classifier = Classifier.from_pretrained("timm/ecaresnet26t.test_in1k", endpoint=hub.url)
    assert classifier.config.labels == tuple(LABELS)
    assert classifier.config.image == ImageConfig(64, 64, 0.9, mean=(0.5,) * 3, std=(0.5,) * 3)
    image = make_image(300, 200)
    ours = {each.index: each.score for each in classifier.predict(image)}
    for index, score in enumerate(stock_probabilities(model, image).tolist()):
        assert ours[index] == pytest.approx(score, abs=1e-5)


def test_a_thousand_classes_without_names_are_imagenets(tmp_path: Path) -> None:
    stock_repository(tmp_path / "stock", "resnet10t", num_classes=1000)
    _, config = load_pretrained(tmp_path / "stock")
    assert config.num_classes == 1000
    assert config.labels[281].startswith("tabby")


@pytest.mark.slow
def test_a_stock_repository_keeps_its_model_args_when_saved_again(tmp_path: Path) -> None:
    stock = stock_repository(tmp_path / "stock", "resnet18", block_args={"attn_layer": "cbam"})
    document = json.loads((tmp_path / "stock" / "config.json").read_text())
    document["model_args"] = {"block_args": {"attn_layer": "cbam"}}
    (tmp_path / "stock" / "config.json").write_text(json.dumps(document))
    model, config = load_pretrained(tmp_path / "stock")
    again, _ = load_pretrained(save_pretrained(model, tmp_path / "again", config=config))
    pixels = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(model(pixels), stock(pixels))
    torch.testing.assert_close(again(pixels), stock(pixels))


@pytest.mark.parametrize(
    "model_args",
    [
        {"checkpoint_path": "/etc/passwd"},
        {"pretrained": True},
        {"pretrained_cfg": {"file": "/etc/passwd"}},
        {"nonsense": 1},
        {"layers": [10**9, 1, 1, 1]},
        [],
        {"block_args": {"attn_layer": "nosuch"}},
    ],
)
def test_model_args_from_a_repository_cannot_reach_beyond_the_network(model_args: Any, tmp_path: Path) -> None:
    stock_repository(tmp_path / "stock", "test_resnet")
    document = json.loads((tmp_path / "stock" / "config.json").read_text())
    (tmp_path / "stock" / "config.json").write_text(json.dumps({**document, "model_args": model_args}))
    if model_args == []:
        load_pretrained(tmp_path / "stock")
        return
    with pytest.raises(EcaHubError):
        load_pretrained(tmp_path / "stock")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_classes": 10**9}, "num_classes is 1000000000"),
        ({"label_names": ["one"]}, "num_classes is 3 and there are 1 label_names"),
        ({"pretrained_cfg": {"input_size": [4, 64, 64]}}, "takes images of 4 channels"),
        ({"pretrained_cfg": []}, "pretrained_cfg or eca_hub is not what this eca-hub reads"),
        ({"eca_hub": {"format": 99}}, "pretrained_cfg or eca_hub is not what this eca-hub reads"),
        ({"architecture": "nosuch"}, "There is no architecture 'nosuch'"),
    ],
)
def test_a_stock_config_with_false_values_is_refused(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    stock_repository(tmp_path / "stock", "test_resnet")
    document = json.loads((tmp_path / "stock" / "config.json").read_text())
    (tmp_path / "stock" / "config.json").write_text(json.dumps({**document, **change}))
    with pytest.raises(EcaHubError) as refused:
        load_pretrained(tmp_path / "stock")
    assert message in str(refused.value)


@pytest.mark.parametrize(
    ("architecture", "attention", "options"),
    [
        ("resnet18", "eca", {}),
        pytest.param("resnet18", "se", {}, marks=pytest.mark.slow),
        pytest.param("resnet50", "eca", {"kernel_sizes": "released"}, marks=pytest.mark.slow),
        pytest.param("resnet18", "none", {}, marks=pytest.mark.slow),
    ],
)
def test_what_is_saved_here_loads_in_stock_timm_and_here_again_to_the_bit(
    architecture: str, attention: str, options: dict[str, Any], tmp_path: Path
) -> None:
    config = ModelConfig(architecture, attention, options, labels=tuple(LABELS), image=ImageConfig(64, 64))
    torch.manual_seed(0)
    model = ecanet.randomize(create_model(architecture, attention=attention, num_classes=3, **options)).eval()
    package = save_pretrained(model, tmp_path / "package", config=config)
    pixels = torch.randn(2, 3, 64, 64)
    stock = timm.create_model(f"local-dir:{package}", pretrained=True).eval()
    assert type(stock).__module__.startswith("timm.")
    torch.testing.assert_close(stock(pixels), model(pixels), rtol=1e-5, atol=1e-5)
    again, loaded = load_pretrained(package)
    assert loaded.attention == attention
    assert {name: tensor.shape for name, tensor in again.state_dict().items()} == {
        name: tensor.shape for name, tensor in model.state_dict().items()
    }
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in model.state_dict().items())


@pytest.mark.slow
def test_zeros_of_an_export_that_are_not_zero_are_refused(tmp_path: Path) -> None:
    import safetensors.torch

    config = ModelConfig("resnet18", "eca", {"kernel_sizes": 1}, labels=tuple(LABELS))
    package = save_pretrained(
        create_model("resnet18", attention="eca", num_classes=3, kernel_sizes=1), tmp_path / "p", config=config
    )
    weights = safetensors.torch.load((package / "model.safetensors").read_bytes())
    weights["layer1.0.se.conv.weight"] += 1
    (package / "model.safetensors").write_bytes(safetensors.torch.save(weights))
    with pytest.raises(
        EcaHubError, match=r"layer1\.0\.se\.conv\.weight is a kernel of size 3; the network has one of size 1"
    ):
        load_pretrained(package)


def test_a_network_that_timm_cannot_build_is_not_in_timms_format(tmp_path: Path) -> None:
    config = ModelConfig("resnet18", "eca", {"kernel_sizes": "released"}, labels=tuple(LABELS))
    model = create_model("resnet18", attention="eca", num_classes=3, kernel_sizes="released")
    document = json.loads((save_pretrained(model, tmp_path / "p", config=config) / "config.json").read_text())
    assert document["library_name"] == "eca-hub"
    assert document["attention_args"] == {"kernel_sizes": [3, 5, 7, 7]}
    assert "pretrained_cfg" not in document


@pytest.mark.slow
def test_stock_timm_loads_from_the_hub_what_was_pushed_without_eca_hub(
    hub: Hub, tmp_path: Path, run_stock: Callable[..., str]
) -> None:
    config = ModelConfig("resnet18", "eca", labels=tuple(LABELS), image=ImageConfig(64, 64))
    torch.manual_seed(0)
    model = ecanet.randomize(create_model("eca_resnet18", num_classes=3)).eval()
    package = save_pretrained(model, tmp_path / "package", config=config)
    push_folder(package, "acme/eca_resnet18_timm", endpoint=hub.url, token=hub.token)
    image = tmp_path / "image.png"
    image.write_bytes(make_image(300, 200))
    theirs = json.loads(run_stock(hub, "acme/eca_resnet18_timm", image))
    expected = Classifier.from_pretrained(package).predict(image)
    assert theirs == {each.label: pytest.approx(each.score, abs=1e-5) for each in expected}


STOCK_TIMM = """
import json, sys
sys.modules["eca_hub"] = None
import timm, torch
from PIL import Image
from timm.data import create_transform, resolve_data_config
model = timm.create_model(f"hf-hub:{sys.argv[1]}", pretrained=True).eval()
transform = create_transform(**resolve_data_config(model.pretrained_cfg, model=model))
scores = model(transform(Image.open(sys.argv[2]))[None]).softmax(1)[0].tolist()
print(json.dumps(dict(zip(model.pretrained_cfg["label_names"], scores))))
"""

STOCK_TRANSFORMERS = """
import json, sys
sys.modules["eca_hub"] = None
import transformers
from PIL import Image
classify = transformers.pipeline("image-classification", model=sys.argv[1])
print(json.dumps({each["label"]: each["score"] for each in classify(Image.open(sys.argv[2]))}))
"""


@pytest.fixture
def run_stock(tmp_path: Path) -> Callable[..., str]:
    """Classify in a process where eca-hub cannot be imported."""

    def run(hub: Hub, model_id: str, image: Path, code: str = STOCK_TIMM) -> str:
        import os

        environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "stock_cache")}
        command = [sys.executable, "-c", code, model_id, str(image)]
        return subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout

    return run


@pytest.mark.slow
def test_the_pipeline_of_transformers_gives_the_same_scores_without_eca_hub(
    hub: Hub, tmp_path: Path, run_stock: Callable[..., str]
) -> None:
    pytest.importorskip("transformers")
    config = ModelConfig("resnet50", "eca", {"kernel_sizes": "released"}, tuple(LABELS), ImageConfig(96, 96))
    model = ecanet.randomize(create_model("resnet50", attention="eca", num_classes=3, kernel_sizes="released"))
    package = save_pretrained(model, tmp_path / "package", config=config)
    push_folder(package, "acme/eca_resnet50_timm", endpoint=hub.url, token=hub.token)
    image = tmp_path / "image.png"
    image.write_bytes(make_image(300, 200))
    theirs = json.loads(run_stock(hub, "acme/eca_resnet50_timm", image, STOCK_TRANSFORMERS))
    assert theirs == {
        each.label: pytest.approx(each.score, abs=1e-5) for each in Classifier.from_pretrained(package).predict(image)
    }


def test_a_folder_as_timm_writes_it_without_a_card_classifies(tmp_path: Path) -> None:
    stock_repository(tmp_path / "stock", "resnet10t")
    (tmp_path / "stock" / "README.md").unlink()
    classifier = Classifier.from_pretrained(tmp_path / "stock")
    assert {each.label for each in classifier.predict(make_image())} == set(LABELS)


def test_a_pickle_instead_of_safetensors_is_named_with_the_command_that_converts_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = timm.create_model("resnet10t", num_classes=3, pretrained_cfg_overlay=SMALL)
    folder = tmp_path / "stock"
    save_for_hf(model, str(folder), model_config={"label_names": LABELS})
    with pytest.raises(InvalidPackage, match=r"only pytorch_model\.bin, .* eca-hub convert .*pytorch_model\.bin --to"):
        load_pretrained(folder)
    # The config.json beside it has what the tensors do not: name, labels and preprocessing.
    assert main([str(folder / "pytorch_model.bin"), "--to", str(tmp_path / "package")]) == 0
    loaded, config = load_pretrained(tmp_path / "package")
    assert config.labels == tuple(LABELS)
    assert config.image.height_px == 64
    pixels = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(loaded(pixels), model.eval()(pixels))


def test_weights_of_integers_are_refused_by_name(tmp_path: Path) -> None:
    stock_repository(tmp_path / "stock", "resnet10t")
    path = tmp_path / "stock" / "model.safetensors"
    save_file({name: tensor.to(torch.int8) for name, tensor in load_file(path).items()}, path)
    with pytest.raises(CheckpointMismatch, match=r"of another kind of number .*bn1.bias is torch.int8 in the"):
        load_pretrained(tmp_path / "stock")


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("model-00001-of-00002.safetensors", "cut into several files"),
        ("adapter_model.safetensors", "An adapter holds a part"),
        ("weights.safetensors", "mv .*weights.safetensors .*model.safetensors"),
    ],
)
def test_other_weights_are_named_with_what_to_do(name: str, hint: str, tmp_path: Path) -> None:
    stock_repository(tmp_path / "stock", "resnet10t")
    (tmp_path / "stock" / "model.safetensors").rename(tmp_path / "stock" / name)
    with pytest.raises(InvalidPackage, match=hint):
        load_pretrained(tmp_path / "stock")
    (tmp_path / "stock" / "config.json").unlink()
    with pytest.raises(InvalidPackage, match=rf"eca-hub convert .*{name} --to NEW_FOLDER"):
        load_pretrained(tmp_path / "stock")


def test_a_file_instead_of_a_folder_is_named_without_asking_a_hub(tmp_path: Path) -> None:
    stock_repository(tmp_path / "stock", "resnet10t")
    with pytest.raises(InvalidPackage, match=r"is a file; a package is a folder. Give its folder: .*stock"):
        load_pretrained(str(tmp_path / "stock" / "model.safetensors"))


@pytest.mark.parametrize("labels_key", ["labels", "label_names"])
def test_a_config_of_timm_before_0_8_loads(labels_key: str, tmp_path: Path) -> None:
    stock = stock_repository(tmp_path / "stock", "resnet10t")
    document = json.loads((tmp_path / "stock" / "config.json").read_text())
    legacy = {"architecture": "resnet10t", "num_features": 512, labels_key: LABELS, **document["pretrained_cfg"]}
    (tmp_path / "stock" / "config.json").write_text(json.dumps(legacy))
    loaded, config = load_pretrained(tmp_path / "stock")
    assert config.labels == tuple(LABELS)
    assert (config.image.height_px, config.image.crop, config.image.mean) == (64, 0.9, (0.5,) * 3)
    pixels = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(loaded(pixels), stock(pixels))


def test_what_a_config_of_timm_leaves_empty_has_timms_default(tmp_path: Path) -> None:
    stock_repository(tmp_path / "stock", "resnet10t")
    document = json.loads((tmp_path / "stock" / "config.json").read_text())
    absent = {"crop_pct", "mean", "label_names", "input_size"}
    empty = dict.fromkeys(["interpolation", "std", "crop_mode", "test_input_size", "num_classes"])
    document["pretrained_cfg"] = {
        name: value for name, value in document["pretrained_cfg"].items() if name not in absent
    } | empty
    document |= {"label_names": None, "model_args": None}
    (tmp_path / "stock" / "config.json").write_text(json.dumps(document))
    _, config = load_pretrained(tmp_path / "stock")
    assert config.image == ImageConfig()
    assert config.labels == ("0", "1", "2")


def test_equal_label_names_of_timm_get_their_index(tmp_path: Path) -> None:
    stock_repository(tmp_path / "stock", "resnet10t")
    document = json.loads((tmp_path / "stock" / "config.json").read_text())
    document["label_names"] = ["crane", "dog", "crane"]
    (tmp_path / "stock" / "config.json").write_text(json.dumps(document))
    assert load_pretrained(tmp_path / "stock")[1].labels == ("crane (0)", "dog", "crane (2)")


def test_a_network_of_one_channel_loads_as_timm_saved_it(tmp_path: Path) -> None:
    model = timm.create_model("resnet10t", num_classes=3, in_chans=1).eval()
    save_for_hf(model, str(tmp_path / "gray"), model_config={"label_names": LABELS}, safe_serialization=True)
    loaded, config = load_pretrained(tmp_path / "gray")
    assert config.image.in_chans == 1
    pixels = torch.randn(1, 1, 64, 64)
    torch.testing.assert_close(loaded(pixels), model(pixels))


def test_a_repository_of_something_else_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "bert"
    folder.mkdir()
    for name, content in {"config.json": '{"model_type": "bert"}', "model.safetensors": "", "README.md": ""}.items():
        (folder / name).write_text(content)
    with pytest.raises(InvalidPackage, match="neither eca-hub's"):
        load_pretrained(folder)
