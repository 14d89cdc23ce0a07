"""Export a network to ONNX, torch.export or TorchScript, with labels and preprocessing in the file's metadata.

The exported network maps normalized float32 images (N, C, H, W), for any N, to logits (N, K).
"""

import dataclasses
import io
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from eca_hub.models.config import ModelConfig

Format = Literal["onnx", "torch_export", "torchscript"]

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
    metadata = json.dumps(
        {"origin": origin, "labels": list(config.labels), "preprocessing": dataclasses.asdict(config.image)}
    )
    image = config.image
    # Two images: with one, exporters take the size of the batch for a constant.
    example_NCHW = torch.zeros(2, image.in_chans, image.height_px, image.width_px)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        if file_format == "torchscript":
            torch.jit.save(torch.jit.trace(model, example_NCHW), str(path), _extra_files={METADATA_KEY: metadata})  # type: ignore[no-untyped-call]
            return
        shapes: Any = ({0: torch.export.Dim("batch", min=1)},)
        program = torch.export.export(model, (example_NCHW,), dynamic_shapes=shapes)
        if file_format == "torch_export":
            # Given a path, torch warns unless it ends in .pt2.
            with path.open("wb") as file:
                torch.export.save(program, file, extra_files={METADATA_KEY: metadata})
            return
        converted = torch.onnx.export(
            program, input_names=["pixels"], output_names=["logits"], dynamo=True, verbose=False
        )
        assert converted is not None
        converted.model.metadata_props[METADATA_KEY] = metadata
        converted.save(path)


def load_exported(path: Path, file_format: Format) -> Callable[[Tensor], Tensor]:
    """Return a function that runs an exported network on the CPU, without gradients."""
    if file_format == "torchscript":
        with warnings.catch_warnings():
            # torch has deprecated TorchScript; programs in C++ and on phones still load it.
            warnings.simplefilter("ignore", FutureWarning)
            script = torch.jit.load(str(path))  # type: ignore[no-untyped-call]
        return torch.no_grad()(lambda x_NCHW: script(x_NCHW))
    if file_format == "torch_export":
        network = torch.export.load(io.BytesIO(path.read_bytes())).module()
        return torch.no_grad()(lambda x_NCHW: network(x_NCHW))
    import onnxruntime  # type: ignore[import-untyped]

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda x_NCHW: torch.from_numpy(session.run(["logits"], {"pixels": x_NCHW.numpy()})[0])
