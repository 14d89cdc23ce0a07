"""Decode JPEGs on a GPU, which can pay where few CPU cores feed a fast GPU.

Only what cameras and websites usually write is decoded: complete baseline JPEGs in gray or YCbCr. Everything else is
left to `eca_hub.images.decode`, and so is every image that fails here: which images are refused, and the message, are
the same on every device. The pixels differ by a few gray levels, because another decoder rounds differently and large
photos are not decoded at a fraction of their size.

Not run on a GPU so far: `pytest -m gpu` compares it with `eca_hub.images.transform`.

Shapes: H height, W width; 3 colors, red first.
"""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from eca_hub.errors import BadImage, InvalidConfig
from eca_hub.images.containers import read_jpeg_frame, sniff_format, strip_metadata
from eca_hub.images.limits import ImageLimits
from eca_hub.images.transform import EvalTransform

DecodeJpeg = Callable[[Tensor], Tensor]
"""Maps the bytes of a JPEG, uint8 on the CPU, to uint8 (3, H, W) on the device."""

_INTERPOLATIONS = ("bilinear", "bicubic")

# A narrow strip becomes very long when its shorter side is resized.
_MAX_ASPECT = 16

# Resizing takes 15 bytes a pixel; larger photos are decoded at a fraction of their size on the CPU.
_MAX_MPX = 16.0

_EXIF_TRANSPOSE: dict[int, Callable[[Tensor], Tensor]] = {
    2: lambda x_3HW: x_3HW.flip(2),
    3: lambda x_3HW: x_3HW.flip(1, 2),
    4: lambda x_3HW: x_3HW.flip(1),
    5: lambda x_3HW: x_3HW.transpose(1, 2),
    6: lambda x_3HW: x_3HW.transpose(1, 2).flip(2),
    7: lambda x_3HW: x_3HW.transpose(1, 2).flip(1, 2),
    8: lambda x_3HW: x_3HW.transpose(1, 2).flip(1),
}


class GpuJpegDecoder:
    """Decode, rotate, resize and crop JPEGs on one GPU.

    Args:
        transform: The model's preprocessing.
        limits: What decoding may cost.
        device: Torch device; `cpu` works as well, without a gain.
        decode: Replaces torchvision's decoder.

    Raises:
        InvalidConfig: the model has an interpolation or a number of channels that is not supported on a GPU.
    """

    def __init__(
        self, transform: EvalTransform, limits: ImageLimits, device: str, *, decode: DecodeJpeg | None = None
    ) -> None:
        if transform.config.interpolation not in _INTERPOLATIONS:
            raise InvalidConfig(
                f"The model resizes by {transform.config.interpolation}; a GPU decodes only with "
                f"{' or '.join(_INTERPOLATIONS)}.",
                hint="Leave --decode_on out.",
            )
        if transform.config.in_chans != 3:
            raise InvalidConfig("The model takes gray images; a GPU decodes only RGB.", hint="Leave --decode_on out.")
        if transform.config.crop_mode == "border":
            raise InvalidConfig(
                "The model's images get borders, which a GPU does not add.", hint="Leave --decode_on out."
            )
        self._transform = transform
        self._limits = replace(limits, max_mpx=min(limits.max_mpx, _MAX_MPX))
        self._decode = decode or _torchvision_decoder(device)

    def decode(self, data: bytes) -> Tensor | None:
        """Map the bytes of an image to uint8 (3, H, W) on the CPU; None if the CPU has to decode it."""
        encoded = self._read_baseline(data)
        if encoded is None:
            return None
        jpeg, orientation = encoded
        try:
            x_3HW = self._decode(jpeg)
            upright_3HW = _EXIF_TRANSPOSE[orientation](x_3HW) if orientation > 1 else x_3HW
            return self._resize_and_crop(upright_3HW).cpu()
        except RuntimeError:
            # Out of memory, or damaged: the decoder on the CPU decides.
            return None

    def _read_baseline(self, data: bytes) -> tuple[Tensor, int] | None:
        try:
            if len(data) > self._limits.max_bytes or sniff_format(data) != "JPEG":
                return None
            stripped = strip_metadata("JPEG", data)
            frame = read_jpeg_frame(stripped.data)
            if frame is None or not frame.is_baseline:
                return None
            self._limits.check_size(frame.width, frame.height)
        except BadImage:
            return None
        if max(frame.width, frame.height) > _MAX_ASPECT * min(frame.width, frame.height):
            return None
        return torch.frombuffer(bytearray(stripped.data), dtype=torch.uint8), stripped.orientation

    def _resize_and_crop(self, x_3HW: Tensor) -> Tensor:
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
        left, top = self._transform.crop_corner(resized_width, resized_height)
        cropped_3HW = resized_13HW[0, :, top : top + config.height_px, left : left + config.width_px]
        return cropped_3HW.round().clamp(0, 255).to(torch.uint8)


def _torchvision_decoder(device: str) -> DecodeJpeg:
    from torchvision.io import ImageReadMode, decode_jpeg

    def decode(jpeg: Tensor) -> Tensor:
        x_3HW: Tensor = decode_jpeg(jpeg, mode=ImageReadMode.RGB, device=device)
        return x_3HW

    return decode
