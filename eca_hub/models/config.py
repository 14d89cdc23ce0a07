"""Configuration of a classifier: network, attention, labels and preprocessing.

`ModelConfig` is the Python argument, the YAML node and the content of a package's config.json. Imports no torch.
"""

import re
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from eca_hub.checks import check_choice, is_number, is_whole
from eca_hub.errors import InvalidConfig

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos"]
CropMode = Literal["center", "squash", "border"]
Stem = Literal["default", "small"]
ProblemType = Literal["single_label_classification", "multi_label_classification"]
Activation = Literal["softmax", "sigmoid", "none"]
"""How logits become scores."""

_MIN_CROP = 0.01
_MIN_BORDER_CROP = 0.25
_MAX_MEAN = 1000.0
_MIN_STD, _MAX_STD = 1e-6, 1000.0
"""Within these, normalized pixels are finite in float32."""

MAX_CLASSES = 100_000
"""Most classes of a network, and so labels of a package."""


@dataclass(frozen=True)
class ImageConfig:
    """Preprocessing of an image, the same in validation, `Classifier` and the service."""

    height_px: int = 224
    """Height of the network's input."""
    width_px: int = 224
    """Width of the network's input."""
    crop: float = 0.875
    """Share of the resized image that the central crop keeps: 0.875 is the paper's 224 of 256."""
    crop_mode: CropMode = "center"
    """`center` resizes the shorter side and crops; `squash` resizes both sides and keeps the whole image; `border`
    resizes the longer side and adds borders of the mean color, as timm does."""
    interpolation: Interpolation = "bicubic"
    """Interpolation of the resize."""
    mean: tuple[float, ...] = IMAGENET_MEAN
    """Mean of each channel, where white is 1; subtracted first."""
    std: tuple[float, ...] = IMAGENET_STD
    """Standard deviation of each channel, divided by afterwards."""
    in_chans: int = 3
    """Channels of the network's input: 3 for RGB, 1 for gray."""
    bit_depth: int | None = None
    """Bits in use of 16-bit images, such as 12 for X-rays: samples from 0 to 2^12 - 1 become 0 to 255. By default what
    the file states (sBIT of a PNG), or 16."""

    def __post_init__(self) -> None:
        for name in ("height_px", "width_px", "in_chans", "bit_depth"):
            set_whole(self, name, may_be_none=name == "bit_depth")
        check_choice("crop_mode", self.crop_mode, CropMode)
        check_choice("interpolation", self.interpolation, Interpolation)
        set_number(self, "crop")
        for name in ("mean", "std"):
            set_numbers(self, name)
        if not (1 <= self.height_px <= 4096 and 1 <= self.width_px <= 4096):
            raise InvalidConfig(f"The input is {self.height_px} x {self.width_px} px; each side must be 1 to 4096.")
        if not _MIN_CROP <= self.crop <= 1.0:
            raise InvalidConfig(f"crop is {self.crop}; it must be {_MIN_CROP} to 1.")
        if self.crop_mode == "border" and self.crop < _MIN_BORDER_CROP:
            raise InvalidConfig(f"crop is {self.crop}; with crop_mode border it must be {_MIN_BORDER_CROP} or more.")
        if self.in_chans not in (1, 3):
            raise InvalidConfig(f"in_chans is {self.in_chans}; it must be 3 (RGB) or 1 (gray).")
        if self.in_chans == 1:
            # The defaults are those of RGB.
            for name in ("mean", "std"):
                numbers = getattr(self, name)
                if len(numbers) == 3:
                    object.__setattr__(self, name, (round(sum(numbers) / 3, 3),))
        check_normalization(self.mean, self.std, self.in_chans)
        check_bit_depth(self.bit_depth)


@dataclass(frozen=True)
class ModelConfig:
    """Which network, with which attention, for which labels."""

    architecture: str = "resnet50"
    """Name of the backbone: see `eca-hub models`."""
    attention: str = "eca"
    """Name of the attention inside each block, or `none`."""
    attention_args: Mapping[str, Any] = field(default_factory=dict)
    """Options of the attention, such as `kernel_sizes: [3, 5, 5, 7]`."""
    labels: tuple[str, ...] = ()
    """Class names in the order of the network's outputs; training takes them from the data."""
    image: ImageConfig = field(default_factory=ImageConfig)
    """Preprocessing."""
    stem: Stem = "default"
    """`default` is the architecture's own stem; `small` does not downsample before the first block, for images up to
    64 px."""
    timm_args: Mapping[str, Any] = field(default_factory=dict)
    """Further arguments of `timm.create_model` for a network of timm, as its config.json gives them."""

    problem_type: ProblemType = "single_label_classification"
    """Whether one label applies to an image, or any number of them; the names are those of transformers."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "stem", current_stem(self.stem))
        check_choice("stem", self.stem, Stem)
        check_choice("problem_type", self.problem_type, ProblemType)
        check_attention(self.attention, self.attention_args)
        if not isinstance(self.architecture, str) or not re.fullmatch(r"[a-z0-9][a-z0-9_.]{0,95}", self.architecture):
            raise InvalidConfig(
                f"architecture is {self.architecture!r}; a name has lower case letters, digits, '_' and '.'."
            )
        check_labels(self.labels)

    @property
    def num_classes(self) -> int:
        """K, the number of labels."""
        return len(self.labels)

    @property
    def is_multi_label(self) -> bool:
        """Whether any number of labels applies to an image."""
        return self.problem_type == "multi_label_classification"

    @property
    def activation(self) -> Activation:
        """How logits become scores: shares that sum to 1, or with several labels the probability of each."""
        return "sigmoid" if self.is_multi_label else "softmax"


def check_labels(labels: Iterable[object]) -> None:
    """Check that class names are strings, and each is another.

    Raises:
        InvalidConfig: names those that are not.
    """
    if not isinstance(labels, list | tuple):
        raise InvalidConfig(f"labels is {labels!r}; give a list of names.")
    names = []
    for index, label in enumerate(labels):
        if not isinstance(label, str):
            raise InvalidConfig(f"Label {index} is {label!r}; each label is a string.")
        names.append(label)
    repeated = sorted(name for name, times in Counter(names).items() if times > 1)
    if repeated:
        raise InvalidConfig(
            f"These labels occur more than once: {', '.join(repeated[:5])}. Each class needs its own name."
        )


def float_tuple(name: str, value: object) -> tuple[float, ...]:
    """Return a list of numbers from a JSON file as floats.

    Raises:
        InvalidConfig: it is none, or one of them is not finite.
    """
    if not isinstance(value, list | tuple) or not all(map(is_number, value)):
        raise InvalidConfig(f"{name} is not a list of finite numbers.")
    return tuple(map(float, value))


def check_attention(attention: object, attention_args: object) -> None:
    """Check that the attention is a name and that its options have names.

    Raises:
        InvalidConfig: says what is given instead.
    """
    if not isinstance(attention, str):
        raise InvalidConfig(f"attention is {attention!r}; it must be a name, such as 'eca'.")
    if not isinstance(attention_args, Mapping):
        raise InvalidConfig(f"attention_args is {attention_args!r}; it must have a value for each name of an option.")


def check_normalization(mean: tuple[float, ...], std: tuple[float, ...], num_channels: int) -> None:
    """Check mean and standard deviation of the channels.

    Raises:
        InvalidConfig: there are not as many as channels, or normalized pixels would not be finite.
    """
    has_all = {len(mean), len(std)} == {num_channels}
    if not has_all or max(map(abs, mean)) > _MAX_MEAN or min(std) < _MIN_STD or max(std) > _MAX_STD:
        needed = "one number" if num_channels == 1 else "three numbers"
        raise InvalidConfig(
            f"mean is {mean} and std {std}; each needs {needed}, mean within {_MAX_MEAN:g} of 0 and std from "
            f"{_MIN_STD} to {_MAX_STD:g}."
        )


def check_bit_depth(bit_depth: int | None) -> None:
    """Check the number of bits of 16-bit images.

    Raises:
        InvalidConfig: it is not 1 to 16.
    """
    if bit_depth is not None and not (is_whole(bit_depth) and 1 <= bit_depth <= 16):
        raise InvalidConfig(f"bit_depth is {bit_depth!r}; it must be a whole number, 1 to 16.")


def set_whole(config: object, name: str, *, may_be_none: bool = False) -> None:
    """Check that a field of a frozen dataclass is a whole number, and make it an int, which JSON can store.

    Raises:
        InvalidConfig: it is another value.
    """
    value = getattr(config, name)
    if value is None and may_be_none:
        return
    if not is_whole(value):
        raise InvalidConfig(f"{name} is {value!r}; it must be a whole number.")
    object.__setattr__(config, name, int(value))


def set_number(config: object, name: str) -> None:
    """Check that a field of a frozen dataclass is a finite number, and make it a float, which JSON can store.

    Raises:
        InvalidConfig: it is another value.
    """
    value = getattr(config, name)
    if not is_number(value):
        raise InvalidConfig(f"{name} is {value!r}; only finite numbers are allowed.")
    object.__setattr__(config, name, float(value))


def set_numbers(config: object, name: str) -> None:
    """Check that a field of a frozen dataclass is a sequence of finite numbers, and make it a tuple of float.

    Raises:
        InvalidConfig: it is another value.
    """
    value = getattr(config, name)
    numbers = tuple(value) if isinstance(value, Iterable) else (None,)
    if not all(map(is_number, numbers)):
        raise InvalidConfig(f"{name} is {value!r}; only finite numbers are allowed.")
    object.__setattr__(config, name, tuple(map(float, numbers)))


def current_stem(stem: Any) -> Any:
    """Translate a name that earlier versions wrote: the stem `own` is now `default`. Other values stay."""
    if stem != "own":
        return stem
    warnings.warn("stem 'own' is now called 'default'; please change it in your file.", FutureWarning, stacklevel=2)
    return "default"
