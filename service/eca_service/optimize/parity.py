"""Whether a network that was made faster still answers as it did, on pictures that are stored beside this file.

The pictures are drawn (bench/draw_pictures.py), not photographed: they carry nobody's rights and have the edges,
textures and colours of photographs. They go through the model's own decoding and preprocessing, as served pictures do.
Knows networks only by what they answer.

Shapes: N images, H height, W width, K classes; 3 colours, red first.
"""

from importlib.resources import files

import torch
from torch import Tensor

from eca_hub import EvalTransform
from eca_service.inference.model import ParityReport

MAX_DIFFERENCE = {torch.float32: 1e-4, torch.float16: 5e-3, torch.bfloat16: 2e-2}
"""How far a probability may move, by the number format of the network."""


def parity_images(transform: EvalTransform) -> Tensor:
    """The pictures as the network wants them, uint8 (N, 3, H, W)."""
    found = sorted(
        (one for one in files("eca_service.optimize").joinpath("images").iterdir()), key=lambda one: one.name
    )
    decoded = [transform.decode(one.read_bytes()) for one in found]
    return torch.stack([transform.resize_and_crop(image) for image in decoded])


def compare(expected_NK: Tensor, found_NK: Tensor, dtype: torch.dtype) -> ParityReport:
    """Hold probabilities against those of the network as it was loaded."""
    same_N = expected_NK.argmax(1) == found_NK.argmax(1)
    # Between two classes that are closer than the bound, either may come first.
    top2_N2 = expected_NK.topk(min(2, expected_NK.shape[1]), 1).values
    is_close_N = (top2_N2[:, 0] - top2_N2[:, -1]) < 2 * MAX_DIFFERENCE[dtype]
    return ParityReport(
        precision=str(dtype).removeprefix("torch."),
        same_top1=float((same_N | is_close_N).float().mean()),
        max_difference=float((expected_NK - found_NK).abs().nan_to_num(1.0).max()),
        num_pictures=len(expected_NK),
    )


def is_passed(test: ParityReport, dtype: torch.dtype) -> bool:
    """Whether the faster network may be used."""
    return test.max_difference <= MAX_DIFFERENCE[dtype] and test.same_top1 == 1.0
