"""What a network looked at: the gates of its attention, and the places that spoke for a class.

Works with any attention that rescales channels, ours or timm's, and with any network that ends in a map before it
pools. Knows a `Classifier`; nothing of files or HTTP.

Source of the map: Selvaraju et al., Grad-CAM, ICCV 2017, https://arxiv.org/abs/1610.02391, eq. 1 and 2.

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

from eca_hub.classifier import Classifier, Prediction
from eca_hub.errors import InvalidConfig
from eca_hub.images.decode import ImageSource

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
    """What one attention did to its channels."""

    name: str
    """Where it stands in the network, such as `layer2.0.se`."""
    stage: int
    """Which stage it belongs to, from 1: attentions in a row with equally many channels."""
    values: tuple[float, ...]
    """By how much each channel was multiplied; for an attention that tells places apart too, by how much on average."""
    mean: float
    """Mean of the values."""
    std: float
    """Standard deviation of the values."""


@dataclass(frozen=True)
class Explanation:
    """What a network looked at in one picture."""

    prediction: Prediction
    """The class that is explained."""
    gates: tuple[Gates, ...]
    """The attentions, in the order in which they act; none for a network without."""
    heat: tuple[tuple[float, ...], ...]
    """How much each place of the network's last map spoke for the class, 0 to 1, row by row. The map lies over what the
    network sees: the picture after resize and crop."""


def explain_picture(
    classifier: Classifier, picture: ImageSource | Tensor, *, class_index: int | None = None
) -> Explanation:
    """Show the gates of every attention, and where in a picture the evidence for a class lies.

    Args:
        classifier: The network; while this runs, nobody else should use it, because its modules are listened to.
        picture: A path, the bytes of a file, a PIL image, or pixels as `EvalTransform.resize_and_crop` makes them.
        class_index: Which class to explain; the likeliest one unless told.

    Raises:
        BadImage: the picture is broken, too large, or none.
        InvalidConfig: there is no class of that index, or the network has no map to look at.
    """
    num_classes = len(classifier.config.labels)
    if class_index is not None and not 0 <= class_index < num_classes:
        raise InvalidConfig(f"class_index is {class_index}; it must be 0 to {num_classes - 1}.")
    if not isinstance(picture, Tensor):
        picture = classifier.transform.resize_and_crop(classifier.transform.decode(picture))
    first = next(classifier.model.parameters())
    x_13HW = classifier.transform.normalize(picture[None].to(first.device)).to(first.dtype)
    heard = _Heard()
    # Gradients flow from the input on, so that frozen weights do no harm.
    with torch.enable_grad(), heard.listen_to(classifier.model):
        logits_1K: Tensor = classifier.model(x_13HW.requires_grad_())
        if heard.map_1CHW is None or not heard.map_1CHW.requires_grad:
            raise InvalidConfig("This network has no map of the picture that could be looked at.")
        index = int(logits_1K.argmax()) if class_index is None else class_index
        [gradient_1CHW] = torch.autograd.grad(logits_1K[0, index], heard.map_1CHW)
    score = logits_1K.detach().float().softmax(1)[0, index].item()
    heat_HW = _heat(heard.map_1CHW.detach()[0].float(), gradient_1CHW[0].float())
    return Explanation(
        Prediction(classifier.config.labels[index], index, score),
        tuple(_with_stages(heard.gains)),
        tuple(tuple(row) for row in heat_HW.tolist()),
    )


class _Heard:
    """What the modules of a network say in one run."""

    def __init__(self) -> None:
        self.gains: list[tuple[str, Tensor]] = []
        self.map_1CHW: Tensor | None = None

    @contextmanager
    def listen_to(self, model: nn.Module) -> Iterator[None]:
        """Hear every attention, and the last map with more than one place."""
        hooks = [module.register_forward_hook(self._hear_map) for module in model.modules()]
        for name, module in _attentions(model):
            before: list[Tensor] = []
            hooks.append(module.register_forward_pre_hook(_keep_copy(before)))
            hooks.append(module.register_forward_hook(self._hear_gates(name, before)))
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _hear_map(self, module: nn.Module, given: Any, y: Any) -> None:
        if isinstance(y, Tensor) and y.ndim == 4 and y.shape[2] * y.shape[3] > 1:
            self.map_1CHW = y

    def _hear_gates(self, name: str, before: list[Tensor]) -> Callable[[nn.Module, Any, Any], None]:
        def hear(module: nn.Module, given: Any, y: Any) -> None:
            x = before.pop()
            if isinstance(y, Tensor) and y.shape == x.shape and y.ndim == 4:
                self.gains.append((name, _gain(x[0].float(), y.detach()[0].float())))

        return hear


def _keep_copy(kept: list[Tensor]) -> Callable[[nn.Module, Any], None]:
    """Keep what an attention is given, which it may overwrite."""

    def keep(module: nn.Module, given: Any) -> None:
        kept.append(given[0].detach().clone())

    return keep


def _attentions(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Find the attentions of a network, but not the parts of one."""
    inside = ""
    for name, module in model.named_modules():
        is_ours = type(module).__module__.startswith("eca_hub.attention")
        if (is_ours or isinstance(module, _TIMM_ATTENTIONS)) and not (inside and name.startswith(inside)):
            inside = f"{name}."
            yield name, module


def _gain(x_CHW: Tensor, y_CHW: Tensor) -> Tensor:
    """By how much each channel was multiplied: exact for a gate, the best fit for anything else; 1 for an empty one."""
    power_C = x_CHW.square().sum((1, 2))
    gain_C = (x_CHW * y_CHW).sum((1, 2)) / power_C
    return torch.where(power_C > 0, gain_C, torch.ones_like(gain_C))


def _with_stages(gains: list[tuple[str, Tensor]]) -> Iterator[Gates]:
    stage, num_channels = 0, 0
    for name, gain_C in gains:
        if len(gain_C) != num_channels:
            stage, num_channels = stage + 1, len(gain_C)
        yield Gates(name, stage, tuple(gain_C.tolist()), gain_C.mean().item(), gain_C.std(correction=0).item())


def _heat(map_CHW: Tensor, gradient_CHW: Tensor) -> Tensor:
    """Weigh the channels of a map by what they do for the class, and keep what speaks for it."""
    weight_C11 = gradient_CHW.mean((1, 2), keepdim=True)
    heat_HW = (weight_C11 * map_CHW).sum(0).relu()
    return heat_HW / heat_HW.max().clamp(min=torch.finfo(heat_HW.dtype).tiny)
