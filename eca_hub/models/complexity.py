"""Count the parameters of a network, and its multiply-adds by two rules.

The plain rule counts one multiply-add for each product inside a convolution or matrix product, as
torch.utils.flop_counter sees them (half its number), and nothing else.

The paper's rule is the one behind the figures of its tables 2 to 4. ECANet's paras_flops.py called thop as that stood
in the summer of 2019, which amounts to a closed form over the layers:

    convolution    out * (C_in / groups * kernel positions + 1 if biased)
    normalization  4 * in                       batch norm only
    activation     in                           ReLU and ReLU6, once a block, see below
    pooling        in + out                     averages over all of H and W
    linear         out * (2 * features_in - 1)  biased or not

where `in` and `out` are numbers of elements. Sigmoid, max pooling, products of gates and maps, and additions cost
nothing. A residual block of the official code calls one ReLU object several times, and thop kept the last call only: so
of the ReLUs that belong to one block, the last one counts. The figures for ResNet-18 and 34 came from a later thop, to
which a ReLU costs nothing. The paper prints these sums in units of 2^30 and 2^20, as it does parameters.

Layers are identified by class; a convolution, product of two matrices or average that a module computes without a
layer, such as the mean inside a gate, is identified by its operator and costs the same. The network's last average is
an exception: it counts only if it is a layer, because the official MobileNetV2 averages without one. Batched products,
such as those of NL and A2-Nets, cost nothing: thop saw layers only.

Runs on the meta device: no memory, no arithmetic, a tenth of a second.
"""

import copy
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._python_dispatch import TorchDispatchMode

from eca_hub.checks import check_count
from eca_hub.errors import InvalidConfig
from eca_hub.models.build import build_model, count_parameters
from eca_hub.models.config import ImageConfig, ModelConfig
from eca_hub.models.detector_config import DetectorConfig
from eca_hub.models.insertion import is_inserted
from eca_hub.models.weight_init import on_meta_device

_ATEN = torch.ops.aten

MAX_SIDE_PX = 16_384
"""Longest side of an image: of a larger one the maps of pairs of positions have more elements than torch can number."""


@dataclass(frozen=True)
class LayerTally:
    """Counts over the layers of a network for one image: products, and elements of inputs and outputs."""

    convolution: int = 0
    """Products in convolutions."""
    biased: int = 0
    """Outputs of convolutions with a bias."""
    normalized: int = 0
    """Inputs of batch norms."""
    activated: int = 0
    """Inputs of ReLUs, every call."""
    activated_once: int = 0
    """Inputs of ReLUs, only the last call of each block."""
    averaged: int = 0
    """Inputs of averages over H and W."""
    averages: int = 0
    """Outputs of averages over H and W."""
    averaged_in_gates: int = 0
    """The part of both that comes from averages without a layer, inside gates."""
    max_pooled: int = 0
    """Inputs of max pooling."""
    linear: int = 0
    """Products in linear layers."""
    linear_out: int = 0
    """Outputs of linear layers."""
    activations: int = 0
    """Outputs of convolutions and matrix products."""


@dataclass(frozen=True)
class Complexity:
    """Parameters and multiply-adds of a network, for one image."""

    num_parameters: int
    """All parameters, trained or not."""
    multiply_adds: int
    """The plain rule: products in convolutions and matrix products."""
    tally: LayerTally
    """The counts that the other rules combine."""
    height_px: int
    """Height of the input."""
    width_px: int
    """Width of the input."""

    @property
    def num_activations(self) -> int:
        """Outputs of convolutions and matrix products, the `activations` of timm's tables."""
        return self.tally.activations

    @property
    def paper_terms(self) -> dict[str, int]:
        """The paper's rule, by kind of layer."""
        tally = self.tally
        return {
            "convolution": tally.convolution + tally.biased,
            "normalization": 4 * tally.normalized,
            "activation": tally.activated_once,
            "pooling": tally.averaged + tally.averages,
            "linear": 2 * tally.linear - tally.linear_out,
        }

    @property
    def paper_multiply_adds(self) -> int:
        """The paper's rule, behind its table 3."""
        return sum(self.paper_terms.values())

    @property
    def poster_multiply_adds(self) -> int:
        """The paper's rule with free ReLUs, behind the poster's figures for ResNet-18 and ResNet-34."""
        return self.paper_multiply_adds - self.tally.activated_once


def count_complexity(
    model: nn.Module | ModelConfig, *, height_px: int | None = None, width_px: int | None = None
) -> Complexity:
    """Count the parameters and multiply-adds of a network for one image.

    Args:
        model: A network, which is not changed, or a configuration; without labels it gets 1000 classes.
        height_px: Height of the image; default: that of the configuration, also of the network's `config`, or 224.
        width_px: Width of the image, likewise.

    Raises:
        InvalidConfig: the network cannot take an image of this size, or is neither a classifier nor a configuration.
    """
    config = model if isinstance(model, ModelConfig) else getattr(model, "config", None)
    if not isinstance(model, nn.Module | ModelConfig) or isinstance(config, DetectorConfig):
        what = config.name if isinstance(config, DetectorConfig) else repr(model)
        raise InvalidConfig(
            f"The complexity of {what} cannot be counted.",
            hint="Give a classifier's network, or ModelConfig('resnet50').",
        )
    image = config.image if isinstance(config, ModelConfig) else ImageConfig()
    height = image.height_px if height_px is None else height_px
    width = image.width_px if width_px is None else width_px
    for name, side_px in (("height_px", height), ("width_px", width)):
        check_count(name, side_px, most=MAX_SIDE_PX)
    if isinstance(model, ModelConfig):
        with on_meta_device():
            meta_model = build_model(model, num_classes=model.num_classes or 1000)
    else:
        meta_model = _without_memory(model)
    meta_model.eval()
    multiply_adds, tally = run_counted(meta_model, height, width, image.in_chans)
    return Complexity(
        num_parameters=count_parameters(meta_model),
        multiply_adds=multiply_adds,
        tally=tally,
        height_px=height,
        width_px=width,
    )


def run_counted(meta_model: nn.Module, height_px: int, width_px: int, in_chans: int = 3) -> tuple[int, LayerTally]:
    """Run a network on the meta device with one image, and count plain multiply-adds and layers.

    Raises:
        InvalidConfig: the network cannot take an image of this size.
    """
    x_NCHW = torch.empty(1, in_chans, height_px, width_px, device="meta")
    layers = _LayerCounter(meta_model)
    try:
        with torch.no_grad(), layers.recording(), layers:
            meta_model(x_NCHW)
    except (RuntimeError, ValueError, AssertionError) as error:
        raise InvalidConfig(f"The network does not accept an image of {height_px} x {width_px} px: {error}") from None
    return layers.num_flops // 2, layers.tally()


def _without_memory(model: nn.Module) -> nn.Module:
    """Copy a network with every tensor on the meta device."""
    tensors: dict[int, Any] = {id(buffer): buffer.to("meta") for buffer in model.buffers()}
    for parameter in model.parameters():
        tensors[id(parameter)] = nn.Parameter(parameter.detach().to("meta"), requires_grad=parameter.requires_grad)
    return copy.deepcopy(model, tensors)


class _LayerCounter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Tally layers, and plain multiply-adds by torch's own formulas, while the network runs once."""

    def __init__(self, network: nn.Module) -> None:
        # Imported here because it imports Triton, which other commands do not need.
        from torch.utils.flop_counter import flop_registry

        super().__init__()  # type: ignore[no-untyped-call]
        self.network = network
        self.formulas = flop_registry
        self.block_of = _block_of(network)
        self.running: list[nn.Module] = []
        self.sums: Counter[str] = Counter()
        self.num_flops = 0
        self.last_activation_of: dict[nn.Module, int] = {}

    def tally(self) -> LayerTally:
        return LayerTally(**self.sums, activated_once=sum(self.last_activation_of.values()))

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Record which module is running."""

        def start(module: nn.Module, args: Any) -> None:
            self.running.append(module)

        def leave(module: nn.Module, args: Any, output: Any) -> None:
            self.running.pop()
            if isinstance(module, _LAYERS):
                self._add_layer(module, args[0], output)

        handles = [module.register_forward_pre_hook(start) for module in self.network.modules()]
        handles += [module.register_forward_hook(leave) for module in self.network.modules()]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _add_layer(self, layer: nn.Module, x: Tensor, y: Tensor) -> None:
        if isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d):
            self.sums.update(_convolution(y, x, layer.weight, layer.bias))
        elif isinstance(layer, nn.Linear):
            self.sums.update(linear=y.numel() * layer.in_features, linear_out=y.numel())
        elif isinstance(layer, _BatchNorm):
            self.sums.update(normalized=x.numel())
        elif isinstance(layer, nn.AdaptiveAvgPool2d):
            self.sums.update(averaged=x.numel(), averages=y.numel())
        elif isinstance(layer, nn.MaxPool2d):
            self.sums.update(max_pooled=x.numel())
        else:
            self.sums.update(activated=x.numel())
            self.last_activation_of[self.block_of.get(layer, layer)] = x.numel()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        y = func(*args, **(kwargs or {}))
        formula = self.formulas.get(func.overloadpacket)
        if formula is not None:
            self.num_flops += formula(*args, **(kwargs or {}), out_val=y)
            if isinstance(y, Tensor):
                self.sums.update(activations=y.numel())
        if func in _OPERATORS and not isinstance(self.running[-1], _LAYERS):
            added = _OPERATORS[func](y, *args)
            if "averaged_in_gates" not in added or self.running[-1] is not self.network:
                self.sums.update(added)
        return y


def _block_of(network: nn.Module) -> dict[nn.Module, nn.Module]:
    """Return the block of each layer: its parent, or that of the sequence which adds attention to an activation."""
    block_of: dict[nn.Module, nn.Module] = {}
    for parent in network.modules():
        has_attention = isinstance(parent, nn.Sequential) and any(map(is_inserted, parent))
        block_of |= dict.fromkeys(parent.children(), block_of.get(parent, parent) if has_attention else parent)
    return block_of


_LAYERS = (
    *(nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear, _BatchNorm),
    *(nn.AdaptiveAvgPool2d, nn.MaxPool2d, nn.ReLU, nn.ReLU6),
)


def _convolution(y: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, *rest: object) -> dict[str, int]:
    return {"convolution": y.numel() * prod(weight.shape[1:]), "biased": 0 if bias is None else y.numel()}


def _average(y: Tensor, x: Tensor, dims: list[int] | None, *rest: object) -> dict[str, int]:
    """Count an average over the spatial axes of a map as pooling, and one over channels as nothing."""
    averaged_axes = {dim % x.ndim for dim in dims or range(x.ndim)}
    return _average_of(y, x) if 1 not in averaged_axes and x.ndim > 2 else {}


def _average_of(y: Tensor, x: Tensor, *rest: object) -> dict[str, int]:
    return {"averaged": x.numel(), "averages": y.numel(), "averaged_in_gates": x.numel() + y.numel()}


def _matrix_product(y: Tensor, x: Tensor) -> dict[str, int]:
    return {"linear": y.numel() * x.shape[1], "linear_out": y.numel()}


_OPERATORS: dict[Any, Callable[..., dict[str, int]]] = {
    _ATEN.convolution.default: _convolution,
    _ATEN.mean.dim: _average,
    _ATEN._adaptive_avg_pool2d.default: _average_of,
    _ATEN.mm.default: lambda y, x, weight: _matrix_product(y, x),
    _ATEN.addmm.default: lambda y, bias, x, weight: _matrix_product(y, x),
}
"""Operators that count as a layer when no layer calls them, and what they add to the tally."""
