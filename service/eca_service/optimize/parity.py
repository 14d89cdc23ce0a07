"""Parity check: compare an optimized network with the original, on images that are stored beside this file.

The images are synthetic (experiments/bench/draw_parity_images.py): they are free of rights and have the edges, textures
and colors of photographs. They go through the model's own decoding and preprocessing, as served images do. They are
four, because each adds 0.06 s to the start of `ecaresnet26t`: with eight, the check took a sixth of it.

Shapes: N images, H height, W width, K classes; 3 colors, red first.
"""

from importlib.resources import files

import torch
from torch import Tensor

from eca_hub import EvalTransform
from eca_service.inference.types import ParityReport

MAX_DIFFERENCE = {torch.float32: 1e-4, torch.float16: 5e-3, torch.bfloat16: 2e-2}
"""How far a probability may move, by the number format of the network."""


def parity_images(transform: EvalTransform) -> Tensor:
    """The stored images as the network's input, uint8 (N, 3, H, W)."""
    images = sorted(files("eca_service.optimize").joinpath("images").iterdir(), key=lambda image: image.name)
    return torch.stack([transform.resize_and_crop(transform.decode(image.read_bytes())) for image in images])


def compare(expected_NK: Tensor, actual_NK: Tensor, dtype: torch.dtype) -> ParityReport:
    """Compare probabilities with those of the network as it was loaded."""
    return ParityReport(
        precision=str(dtype).removeprefix("torch."),
        same_top1=float((expected_NK.argmax(1) == actual_NK.argmax(1)).float().mean()),
        max_difference=float((expected_NK - actual_NK).abs().nan_to_num(1.0).max()),
        num_images=len(expected_NK),
        allowed_difference=MAX_DIFFERENCE[dtype],
    )


def is_passed(report: ParityReport) -> bool:
    """Whether the optimized network may be used: the same most likely class for every image, within the bound."""
    return report.max_difference <= report.allowed_difference and report.same_top1 == 1.0
