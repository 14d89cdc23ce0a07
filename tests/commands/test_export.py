"""`eca-hub export`: the file gives the probabilities of Classifier, for any number of images."""

import io
import json
from pathlib import Path
from typing import Literal

import pytest
import torch

import eca_hub
from eca_hub import Classifier
from eca_hub.commands import export
from eca_hub.errors import InvalidConfig, InvalidUsage
from eca_hub.hub.export import METADATA_KEY, Format, export_network, level_names, load_exported, load_exported_levels
from eca_hub.models.build import build_model
from eca_hub.models.feature_pyramid import pyramid_of
from tests.conftest import LABELS, save_tiny_detector


@pytest.mark.filterwarnings("ignore:.*torch.jit.load:FutureWarning")
@pytest.mark.parametrize(
    "file_format",
    ["torchscript", *(pytest.param(name, marks=pytest.mark.slow) for name in ("onnx", "torch_export"))],
)
def test_an_exported_network_gives_the_same_probabilities_and_has_metadata(
    file_format: Format, tiny_package: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "exported"
    assert export.main([str(tiny_package), "--to", file_format, "--output", str(path), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["difference"] <= 1e-5
    classifier = Classifier.from_pretrained(tiny_package)
    pixels = torch.randint(0, 256, (5, 3, 16, 16), dtype=torch.uint8)
    with torch.no_grad():
        logits = load_exported(path, file_format)(classifier.transform.normalize(pixels))
    torch.testing.assert_close(logits.softmax(1), classifier.probabilities(pixels), atol=1e-5, rtol=0)
    metadata = json.loads(read_metadata(path, file_format))
    assert metadata["labels"] == list(LABELS)
    assert metadata["preprocessing"]["height_px"] == 16
    assert [each.name for each in tmp_path.iterdir()] == ["exported"]


def read_metadata(path: Path, file_format: Format) -> str:
    extra = {METADATA_KEY: ""}
    if file_format == "torchscript":
        torch.jit.load(str(path), _extra_files=extra)  # type: ignore[no-untyped-call]
    elif file_format == "torch_export":
        torch.export.load(io.BytesIO(path.read_bytes()), extra_files=extra)
    else:
        import onnx

        extra = {each.key: each.value for each in onnx.load(path).metadata_props}
    return extra[METADATA_KEY]


@pytest.mark.parametrize("kind", ["mask_rcnn", "retinanet"])
@pytest.mark.parametrize("file_format", ["onnx", "torch_export"])
@pytest.mark.slow
def test_of_a_detector_backbone_and_pyramid_are_exported(
    kind: Literal["mask_rcnn", "retinanet"], file_format: Format, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    package = save_tiny_detector(tmp_path / "package", kind)
    path = tmp_path / "exported"
    assert export.main([str(package), "--to", file_format, "--output", str(path)]) == 0
    said = capsys.readouterr().out
    assert "The whole detector does not export" in said
    assert "Run:   p" in said
    detector = eca_hub.Detector.from_pretrained(package)
    names = level_names(detector.config)
    x_N3HW = torch.randn(2, 3, 192, 160)
    with torch.no_grad():
        expected = list(pyramid_of(detector.model)(x_N3HW).values())
    found = load_exported_levels(path, file_format, names)(x_N3HW)
    assert len(found) == len(expected) == 5
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)
    metadata = json.loads(read_metadata(path, file_format))
    assert (metadata["labels"], metadata["detector"]["detector"]) == (["bar", "disk"], kind)


def test_a_detector_is_not_exported_to_torchscript(detector_package: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidConfig, match="is not exported to torchscript"):
        export.main([str(detector_package), "--to", "torchscript", "--output", str(tmp_path / "x.pt")])
    assert not list(tmp_path.iterdir())


def test_a_network_that_differs_is_not_written(
    tiny_package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "eca_hub.hub.export.load_exported", lambda *_: lambda x_NCHW: torch.eye(3)[:1] * x_NCHW.shape[0]
    )
    assert export.main([str(tiny_package), "--to", "torchscript", "--output", str(tmp_path / "x.pt")]) == 1
    assert list(tmp_path.iterdir()) == []


def test_outputs_that_are_not_numbers_are_not_written(
    tiny_package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "eca_hub.hub.export.load_exported", lambda *_: lambda x_NCHW: torch.full((x_NCHW.shape[0], 3), torch.nan)
    )
    assert export.main([str(tiny_package), "--to", "torchscript", "--output", str(tmp_path / "x.pt")]) == 1
    assert list(tmp_path.iterdir()) == []


def test_levels_of_a_detector_that_are_not_numbers_are_not_written(
    detector_package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("eca_hub.hub.export.export_pyramid", lambda *_, **__: None)
    levels = (torch.full((1,), torch.nan), *[torch.zeros(1)] * 4)
    monkeypatch.setattr("eca_hub.hub.export.load_exported_levels", lambda *_: lambda _: levels)
    assert export.main([str(detector_package), "--to", "torch_export", "--output", str(tmp_path / "x.pt2")]) == 1
    assert list(tmp_path.iterdir()) == []


def test_the_input_of_a_gray_network_is_called_gray(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = eca_hub.ModelConfig("resnet20", "eca", labels=LABELS, image=eca_hub.ImageConfig(16, 16, in_chans=1))
    package = eca_hub.save_pretrained(build_model(config), tmp_path / "package", config=config)
    assert export.main([str(package), "--to", "torchscript", "--output", str(tmp_path / "x.pt")]) == 0
    assert "(N, 1, 16, 16), any N; gray from 0 to 1" in capsys.readouterr().out


def test_a_folder_that_cannot_be_written_is_refused_before_the_model_is_loaded() -> None:
    with pytest.raises(InvalidUsage, match=r"^/proc/x\.pt cannot be written: "):
        export.main(["no/model", "--to", "torchscript", "--output", "/proc/x.pt"])


def test_a_name_that_no_file_can_have_is_refused_in_a_sentence() -> None:
    for name, reason in (("x" * 300, "x cannot be written: File name too long."), ("", "--output is empty")):
        with pytest.raises(InvalidUsage, match=reason):
            export.main(["no/model", "--to", "torchscript", "--output", name])


def test_a_disk_that_is_full_is_an_error_of_the_file_system(tiny_package: Path) -> None:
    model, config = eca_hub.load_pretrained(tiny_package)
    with pytest.raises(OSError, match="No space left on device"):
        export_network(model, config, Path("/dev/full"), "torchscript", origin="acme/tiny")


def test_a_file_that_exists_is_not_replaced(tiny_package: Path, tmp_path: Path) -> None:
    (tmp_path / "model.onnx").touch()
    with pytest.raises(InvalidUsage, match="exists"):
        export.main([str(tiny_package), "--to", "onnx", "--output", str(tmp_path / "model.onnx")])
