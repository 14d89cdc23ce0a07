"""Explain a prediction: the gates of the attention modules, and a Grad-CAM heatmap.

Gates are measured for every module that rescales channels: those of this library, of timm, and any callable that was
given to `create_model` as attention, unless its class says `is_gate = False`. The heatmap needs a network with a map
before its pooling, in NCHW or NHWC.

Source of the heatmap: Selvaraju et al., Grad-CAM, ICCV 2017, https://arxiv.org/abs/1610.02391, eq. 1 and 2.

Shapes: N images, C channels, H height, W width, K classes.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from timm.layers import CecaModule, EcaModule, EffectiveSEModule, GatherExcite, GlobalContext, SEModule, SqueezeExcite
from timm.layers.cbam import CbamModule, LightCbamModule
from torch import Tensor, nn

from eca_hub.checks import is_whole
from eca_hub.classifier import Classifier, Prediction, check_finite_scores
from eca_hub.errors import InvalidConfig
from eca_hub.images.decode import ImageSource
from eca_hub.models.insertion import is_inserted

_TIMM_ATTENTIONS = (
    CbamModule,
    CecaModule,
    EcaModule,
    EffectiveSEModule,
    GatherExcite,
    GlobalContext,
    LightCbamModule,
    SEModule,
    SqueezeExcite,
)


@dataclass(frozen=True)
class Gates:
    """The gates of one attention module."""

    name: str
    """Name of the module, such as `layer2.0.se`."""
    stage: int
    """Stage of the module, from 1: consecutive attention modules with the same number of channels."""
    values: tuple[float, ...]
    """Factor of each channel; the least squares fit of one factor if the module gates positions as well."""
    mean: float
    """Mean of the values."""
    std: float
    """Standard deviation of the values."""


@dataclass(frozen=True)
class Explanation:
    """Why a network predicts a class for one image."""

    prediction: Prediction
    """The class that is explained."""
    gates: tuple[Gates, ...]
    """The attention modules that rescale channels, in the order of the forward pass; empty for a network without."""
    heatmap: tuple[tuple[float, ...], ...]
    """Evidence for the class at each position of the network's last map, 0 to 1, row by row. The map covers the
    network's input: the image after resize and crop."""


def explain_image(
    classifier: Classifier, image: ImageSource | Tensor, *, class_index: int | None = None
) -> Explanation:
    """Compute the gates of every attention module, and where in an image the evidence for a class is.

    Args:
        classifier: The network. It must not run elsewhere at the same time, because hooks are registered on it.
        image: A path, the bytes of a file, a PIL image, or pixels as `EvalTransform.resize_and_crop` returns them.
        class_index: The class to explain; default: the predicted one.

    Raises:
        BadImage: the image is broken, too large, or not an image.
        InvalidConfig: there is no class of that index, the pixels have another shape or dtype than the network's input,
            or the network has no map before its pooling.
        NonFiniteScores: an output of the network is not finite, or gates or heatmap are not.
    """
    num_classes = len(classifier.config.labels)
    if class_index is not None and not (is_whole(class_index) and 0 <= class_index < num_classes):
        raise InvalidConfig(f"class_index is {class_index!r}; it must be 0 to {num_classes - 1}.")
    if not isinstance(image, Tensor):
        image = classifier.transform.resize_and_crop(classifier.transform.decode(image))
    needed = classifier.config.image
    shape_CHW = (needed.in_chans, needed.height_px, needed.width_px)
    if image.dtype != torch.uint8 or image.shape != shape_CHW:
        raise InvalidConfig(
            f"The pixels are {image.dtype} of shape {tuple(image.shape)}; the network needs torch.uint8, {shape_CHW}.",
            hint="EvalTransform.resize_and_crop makes them.",
        )
    first = next(classifier.model.parameters())
    x_1CHW = classifier.transform.normalize(image[None].to(first.device)).to(first.dtype)
    recorder = _ActivationRecorder()
    # The input requires a gradient, so that frozen weights make no difference.
    with torch.enable_grad(), recorder.attached_to(classifier.model):
        logits_1K, map_ = _run(classifier.model, x_1CHW.requires_grad_(), recorder)
        if map_ is None or not map_.requires_grad:
            raise InvalidConfig("This network has no map before its pooling, so there is no heatmap.")
        check_finite_scores(logits_1K, classifier.model_id)
        index = int(logits_1K.argmax() if class_index is None else class_index)
        [gradient] = torch.autograd.grad(logits_1K[0, index], map_)
    scores_1K = classifier.to_scores(logits_1K.detach().float(), classifier.config.activation)
    score = scores_1K[0, index].item()
    is_channels_last = _is_nhwc(map_, getattr(classifier.model, "output_fmt", None))
    map_CHW, gradient_CHW = (
        (tensor[0].permute(2, 0, 1) if is_channels_last else tensor[0]).detach().float() for tensor in (map_, gradient)
    )
    heatmap_HW = _heatmap(map_CHW, gradient_CHW)
    for what in (heatmap_HW, *(gain_C for _, gain_C in recorder.gains)):
        check_finite_scores(what, classifier.model_id)
    return Explanation(
        Prediction(classifier.config.labels[index], index, score),
        tuple(_with_stages(recorder.gains)),
        tuple(tuple(row) for row in heatmap_HW.tolist()),
    )


def _run(model: nn.Module, x_1CHW: Tensor, recorder: "_ActivationRecorder") -> tuple[Tensor, Tensor | None]:
    """Return logits and the last map: what timm's networks pool, or else the last output of a module that is a map."""
    features, head = (getattr(model, name, None) for name in ("forward_features", "forward_head"))
    if callable(features) and callable(head):
        map_ = features(x_1CHW)
        logits_1K: Tensor = head(map_)
        if _is_map(map_):
            return logits_1K, map_
        return logits_1K, recorder.last_map
    return model(x_1CHW), recorder.last_map


def _is_map(y: Any) -> bool:
    return isinstance(y, Tensor) and y.ndim == 4 and y.shape[2] * y.shape[3] > 1


def _is_nhwc(map_: Tensor, output_format: Any) -> bool:
    """Whether the channels of a map come last: as timm declares it, or by the two sides that are equal."""
    if output_format in ("NHWC", "NCHW"):
        return bool(output_format == "NHWC")
    _, first, second, third = map_.shape
    return first == second != third


class _ActivationRecorder:
    """Records the gains of attention modules and the last map of one forward pass."""

    def __init__(self) -> None:
        self.gains: list[tuple[str, Tensor]] = []
        self.last_map: Tensor | None = None

    @contextmanager
    def attached_to(self, model: nn.Module) -> Iterator[None]:
        """Register the hooks, and remove them at the end."""
        handles = [module.register_forward_hook(self._record_map) for module in model.modules()]
        for name, module in _attentions(model):
            inputs: list[Tensor] = []
            handles.append(module.register_forward_pre_hook(_keep_copy(inputs)))
            handles.append(module.register_forward_hook(self._record_gain(name, inputs)))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _record_map(self, module: nn.Module, args: Any, y: Any) -> None:
        if _is_map(y):
            self.last_map = y

    def _record_gain(self, name: str, inputs: list[Tensor]) -> Callable[[nn.Module, Any, Any], None]:
        def record(module: nn.Module, args: Any, y: Any) -> None:
            x = inputs.pop()
            if isinstance(y, Tensor) and y.shape == x.shape and y.ndim == 4:
                self.gains.append((name, _gain(x[0].float(), y.detach()[0].float())))

        return record


def _keep_copy(inputs: list[Tensor]) -> Callable[[nn.Module, Any], None]:
    """Keep a copy of a module's input, because the module may work in place."""

    def keep(module: nn.Module, args: Any) -> None:
        inputs.append(args[0].detach().clone())

    return keep


def _attentions(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Find the attention modules of a network that rescale channels, without their submodules."""
    parent = ""
    for name, module in model.named_modules():
        is_ours = is_inserted(module) or type(module).__module__.startswith("eca_hub.attention")
        if (is_ours or isinstance(module, _TIMM_ATTENTIONS)) and not (parent and name.startswith(parent)):
            parent = f"{name}."
            if _is_gate(module):
                yield name, module


def _is_gate(module: nn.Module) -> bool:
    """Whether a module multiplies its input; timm's GlobalContext can be built to add to it."""
    return getattr(module, "is_gate", True) and getattr(module, "mlp_add", None) is None


def _gain(x_CHW: Tensor, y_CHW: Tensor) -> Tensor:
    """Compute the factor of each channel: exact for a gate, else the least squares fit; 1 for a channel of zeros."""
    power_C = x_CHW.square().sum((1, 2))
    gain_C = (x_CHW * y_CHW).sum((1, 2)) / power_C
    return torch.where(power_C > 0, gain_C, torch.ones_like(gain_C))


def _with_stages(gains: list[tuple[str, Tensor]]) -> Iterator[Gates]:
    stage, num_channels = 0, 0
    for name, gain_C in gains:
        if len(gain_C) != num_channels:
            stage, num_channels = stage + 1, len(gain_C)
        yield Gates(name, stage, tuple(gain_C.tolist()), gain_C.mean().item(), gain_C.std(correction=0).item())


def _heatmap(map_CHW: Tensor, gradient_CHW: Tensor) -> Tensor:
    """Sum the channels weighted by their mean gradient, and keep the positive part, scaled to at most 1."""
    weight_C11 = gradient_CHW.mean((1, 2), keepdim=True)
    heatmap_HW = (weight_C11 * map_CHW).sum(0).relu()
    return heatmap_HW / heatmap_HW.max().clamp(min=torch.finfo(heatmap_HW.dtype).tiny)
