"""Export a network to ONNX, torch.export or TorchScript.

Labels and preprocessing are in the file's metadata, and the network maps normalized float32 images (N, C, H, W), for
any N, to logits (N, K).
"""

import dataclasses
import io
import json
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from eca_hub.errors import InvalidConfig
from eca_hub.models.config import ModelConfig
from eca_hub.models.detector_config import DetectorConfig
from eca_hub.models.feature_pyramid import pyramid_of

Format = Literal["onnx", "torch_export", "torchscript"]

STRIDE_PX = 32
"""The sides of a detector's input are multiples of this."""
MIN_SIDE_PX = 160
"""And at least this in an exported pyramid: exporters take a level of one row or column for a constant."""
METADATA_KEY = "eca_hub.json"
"""Name of the metadata: a metadata property of ONNX, an extra file of the other formats."""


def export_network(model: nn.Module, config: ModelConfig, path: Path, file_format: Format, *, origin: str) -> None:
    """Write a network to a file of another format.

    Args:
        model: The network, in evaluation mode on the CPU.
        config: Labels and preprocessing.
        path: The file.
        file_format: Format of the file.
        origin: Id and revision of the model, for the metadata.
    """
    metadata = _metadata(
        origin, config.labels, activation=config.activation, preprocessing=dataclasses.asdict(config.image)
    )
    image = config.image
    # Two images: with one, exporters take the size of the batch for a constant.
    example_NCHW = torch.zeros(2, image.in_chans, image.height_px, image.width_px)
    sizes = {0: torch.export.Dim("batch", min=1)}
    _write(model, example_NCHW, sizes, ["logits"], metadata, path, file_format)


def export_pyramid(model: nn.Module, config: DetectorConfig, path: Path, file_format: Format, *, origin: str) -> None:
    """Write backbone and feature pyramid of a detector to a file of another format.

    It maps normalized float32 images (N, 3, H, W), for any N and sides that are multiples of 32 from 160 px on, to the
    levels of the pyramid, finest first. The heads stay behind: how many boxes they keep depends on the image.

    Args:
        model: The detector, in evaluation mode on the CPU.
        config: Labels and preprocessing.
        path: The file.
        file_format: Format of the file.
        origin: Id and revision of the model, for the metadata.

    Raises:
        InvalidConfig: the format has one size of the input only.
    """
    if file_format == "torchscript":
        raise InvalidConfig("A detector is not exported to torchscript.", hint="Give --to onnx or torch_export.")
    fields = dataclasses.asdict(config)
    metadata = _metadata(origin, fields.pop("labels"), detector=fields)
    least = MIN_SIDE_PX // STRIDE_PX
    rows, columns = torch.export.Dim("rows", min=least), torch.export.Dim("columns", min=least)
    sizes = {0: torch.export.Dim("batch", min=1), 2: STRIDE_PX * rows, 3: STRIDE_PX * columns}
    example_N3HW = torch.zeros(2, 3, (least + 1) * STRIDE_PX, (least + 2) * STRIDE_PX)
    _write(PyramidLevels(model), example_N3HW, sizes, level_names(config), metadata, path, file_format)


class PyramidLevels(nn.Module):
    """Backbone and pyramid of a detector, with the levels as a tuple.

    Args:
        model: The detector.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.pyramid = pyramid_of(model)

    def forward(self, x_N3HW: Tensor) -> tuple[Tensor, ...]:
        """Map (N, 3, H, W) to the levels, finest first."""
        return tuple(self.pyramid(x_N3HW).values())


def level_names(config: DetectorConfig) -> list[str]:
    """Name the levels of a pyramid by the power of two of their stride: p2 has 4 px."""
    first = 3 if config.detector == "retinanet" else 2
    return [f"p{level}" for level in range(first, first + len(config.anchor_sizes_px))]


def load_exported(path: Path, file_format: Format) -> Callable[[Tensor], Tensor]:
    """Return a function that runs an exported network on the CPU, without gradients."""
    run = load_exported_levels(path, file_format, ["logits"])
    return lambda x_NCHW: run(x_NCHW)[0]


def load_exported_levels(
    path: Path, file_format: Format, names: Sequence[str]
) -> Callable[[Tensor], tuple[Tensor, ...]]:
    """Return a function that runs an exported network with several outputs on the CPU, without gradients."""
    if file_format == "onnx":
        import onnxruntime  # type: ignore[import-untyped]

        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        return lambda x_NCHW: tuple(map(torch.from_numpy, session.run(list(names), {"pixels": x_NCHW.numpy()})))
    if file_format == "torchscript":
        with warnings.catch_warnings():
            # torch has deprecated TorchScript; programs in C++ and on phones still load it.
            warnings.simplefilter("ignore", FutureWarning)
            network = torch.jit.load(str(path))  # type: ignore[no-untyped-call]
    else:
        network = torch.export.load(io.BytesIO(path.read_bytes())).module()

    def run(x_NCHW: Tensor) -> tuple[Tensor, ...]:
        outputs = network(x_NCHW)
        return outputs if isinstance(outputs, tuple) else (outputs,)

    return torch.no_grad()(run)


def _metadata(origin: str, labels: Sequence[str], **facts: object) -> str:
    return json.dumps({"origin": origin, "labels": list(labels), **facts})


def _write(
    model: nn.Module,
    example_NCHW: Tensor,
    sizes: dict[int, Any],
    names: list[str],
    metadata: str,
    path: Path,
    file_format: Format,
) -> None:
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        if file_format == "torchscript":
            traced = torch.jit.trace(model, example_NCHW)  # type: ignore[no-untyped-call]
            # Given a path, torch raises a RuntimeError where it cannot write.
            with path.open("wb") as file:
                torch.jit.save(traced, file, _extra_files={METADATA_KEY: metadata})
            return
        program = torch.export.export(model, (example_NCHW,), dynamic_shapes=(sizes,))
        if file_format == "torch_export":
            # Given a path, torch warns unless it ends in .pt2.
            with path.open("wb") as file:
                torch.export.save(program, file, extra_files={METADATA_KEY: metadata})
            return
        converted = torch.onnx.export(program, input_names=["pixels"], output_names=names, dynamo=True, verbose=False)
        assert converted is not None
        converted.model.metadata_props[METADATA_KEY] = metadata
        converted.save(path)
