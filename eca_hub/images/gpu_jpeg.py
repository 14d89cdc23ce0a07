"""JPEGs to the network's input on a GPU, which may be worth it where few cores feed a fast one.

Only what a camera or a website usually writes: a whole baseline JPEG in grey or YCbCr. Everything else is left to
`eca_hub.images.transform`, and so is what fails here: which image is refused, and the message, depend on no device. The
pixels differ from those of `images` by a few gray levels, because another decoder rounds in another way and a large
photo is not decoded at a fraction of its size.

Not run on a GPU so far: `pytest -m gpu` compares it with `eca_hub.images.transform`.

Shapes: H height, W width; 3 colours, red first.
"""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from eca_hub.errors import BadImage, InvalidConfig
from eca_hub.images.containers import format_of, jpeg_frame_of, pixel_parts_of
from eca_hub.images.transform import EvalTransform, ImageLimits, check_size

DecodeJpeg = Callable[[Tensor], Tensor]
"""Maps the bytes of a JPEG, uint8 on the processor's side, to uint8 (3, H, W) on the device."""

_KNOWN_RESIZES = ("bilinear", "bicubic")

# A strip grows beyond all measure when its shorter side is resized.
_MAX_ASPECT = 16

# Each pixel takes 15 bytes while it is resized; larger photos are decoded at a fraction of their size elsewhere.
_MAX_MPX = 16.0

_TURN_BACK: dict[int, Callable[[Tensor], Tensor]] = {
    2: lambda x_3HW: x_3HW.flip(2),
    3: lambda x_3HW: x_3HW.flip(1, 2),
    4: lambda x_3HW: x_3HW.flip(1),
    5: lambda x_3HW: x_3HW.transpose(1, 2),
    6: lambda x_3HW: x_3HW.transpose(1, 2).flip(2),
    7: lambda x_3HW: x_3HW.transpose(1, 2).flip(1, 2),
    8: lambda x_3HW: x_3HW.transpose(1, 2).flip(1),
}


class GpuJpegs:
    """Decodes, turns, resizes and crops on one GPU.

    Args:
        transform: The model's preprocessing.
        limits: What a picture may cost.
        device: Which GPU; a processor works as well, and gains nothing.
        decode: What decodes; torchvision's decoder on that device unless told.

    Raises:
        InvalidConfig: the model resizes in a way that is not known there.
    """

    def __init__(
        self, transform: EvalTransform, limits: ImageLimits, device: str, *, decode: DecodeJpeg | None = None
    ) -> None:
        if transform.config.interpolation not in _KNOWN_RESIZES:
            raise InvalidConfig(
                f"The model resizes by {transform.config.interpolation}; on a GPU only "
                f"{' and '.join(_KNOWN_RESIZES)} are known.",
                hint="Leave --decode_on out.",
            )
        self._transform = transform
        self._limits = replace(limits, max_mpx=min(limits.max_mpx, _MAX_MPX))
        self._decode = decode or _decoder_on(device)

    def pixels_of(self, data: bytes) -> Tensor | None:
        """Map the bytes of a picture to uint8 (3, H, W) on the processor's side; None for what is left to `images`."""
        encoded = self._usual_jpeg_in(data)
        if encoded is None:
            return None
        jpeg, orientation = encoded
        try:
            x_3HW = self._decode(jpeg)
            upright_3HW = _TURN_BACK[orientation](x_3HW) if orientation > 1 else x_3HW
            return self._resized(upright_3HW).cpu()
        except RuntimeError:
            # Out of memory, or bytes that this decoder does not like: the other one has the last word.
            return None

    def _usual_jpeg_in(self, data: bytes) -> tuple[Tensor, int] | None:
        try:
            if len(data) > self._limits.max_bytes or format_of(data) != "JPEG":
                return None
            parts = pixel_parts_of("JPEG", data)
            frame = jpeg_frame_of(parts.data)
            if frame is None or not frame.is_usual:
                return None
            check_size(frame.width, frame.height, self._limits)
        except BadImage:
            return None
        if max(frame.width, frame.height) > _MAX_ASPECT * min(frame.width, frame.height):
            return None
        return torch.frombuffer(bytearray(parts.data), dtype=torch.uint8), parts.orientation

    def _resized(self, x_3HW: Tensor) -> Tensor:
        config = self._transform.config
        height, width = x_3HW.shape[1:]
        resized_width, resized_height = self._transform.resized_size(width, height)
        resized_13HW = interpolate(
            x_3HW[None].float(),
            (resized_height, resized_width),
            mode=config.interpolation,
            align_corners=False,
            antialias=True,
        )
        left, top = self._transform.corner_of(resized_width, resized_height)
        cut_3HW = resized_13HW[0, :, top : top + config.height_px, left : left + config.width_px]
        return cut_3HW.round().clamp(0, 255).to(torch.uint8)


def _decoder_on(device: str) -> DecodeJpeg:
    from torchvision.io import ImageReadMode, decode_jpeg

    def decode(jpeg: Tensor) -> Tensor:
        x_3HW: Tensor = decode_jpeg(jpeg, mode=ImageReadMode.RGB, device=device)
        return x_3HW

    return decode
