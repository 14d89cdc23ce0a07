"""What a network costs: exact parameters, and multiply-adds by two rules that are both named.

The plain rule counts one multiply-add for each product inside a convolution or matrix product, as torch.utils.flop_counter sees
them (half its number), and nothing else.

The paper's rule is the one behind the figures of its tables 2 to 4. ECANet's paras_flops.py called thop as that stood in the
summer of 2019, which amounts to a closed form over the layers:

    convolution    out * (C_in / groups * kernel positions + 1 if biased)
    normalization  4 * in                       batch norm only
    activation     in                           ReLU and ReLU6, once a block, see below
    pooling        in + out                     averages over all of H and W
    linear         out * (2 * features_in - 1)  biased or not

where `in` and `out` are numbers of elements. Sigmoid, max pooling, products of gates and maps, and additions cost nothing. A
residual block of the official code calls one ReLU object several times, and thop kept the last call only: so of the ReLUs that
belong to one block, the last one counts. The figures for ResNet-18 and 34 came from a later thop, to which a ReLU costs nothing.

Layers are told apart by class, so a convolution, product or average that a module computes without a layer, as a gate does that
averages by itself, is found by its operator and costs the same. The network's own last average is the exception: it counts as a
layer or not at all, for the official MobileNetV2 averages without one.

Runs on the meta device: no memory, no arithmetic, a tenth of a second. Knows nothing of published figures.
"""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from eca_hub.errors import InvalidConfig
from eca_hub.models.build import build_model
from eca_hub.models.config import ModelConfig

PAPER_MEGA = 2**20
"""What the paper's M stands for; its G is 2^30. Parameters of tables 2 to 4 are in this unit."""

_ATEN = torch.ops.aten


@dataclass(frozen=True)
class LayerOps:
    """Operations by kind of layer, in the paper's rule, for one image."""

    convolution: int = 0
    normalization: int = 0
    activation: int = 0
    pooling: int = 0
    linear: int = 0


@dataclass(frozen=True)
class Complexity:
    """What a network costs, for one image."""

    num_parameters: int
    """All of them, whether trained or not."""
    multiply_adds: int
    """The plain rule: products in convolutions and matrix products."""
    layer_ops: LayerOps
    """The terms of the paper's rule."""
    height_px: int
    """Height of the input that this was counted for."""
    width_px: int
    """Width of it."""

    @property
    def paper_multiply_adds(self) -> int:
        """The paper's rule, behind its table 3."""
        ops = self.layer_ops
        return ops.convolution + ops.normalization + ops.activation + ops.pooling + ops.linear

    @property
    def poster_multiply_adds(self) -> int:
        """The paper's rule with free ReLUs, behind the poster's figures for ResNet-18 and ResNet-34."""
        return self.paper_multiply_adds - self.layer_ops.activation


def count(model: nn.Module | ModelConfig, *, height_px: int | None = None, width_px: int | None = None) -> Complexity:
    """Count the parameters and multiply-adds of a network for one image.

    Args:
        model: A network, which stays as it is, or a configuration; one without labels gets 1000 classes.
        height_px: Height of the image; a configuration's own, or 224, when none is given.
        width_px: Width of it, likewise.

    Raises:
        InvalidConfig: the network cannot take an image of this size.
    """
    if isinstance(model, ModelConfig):
        height, width = height_px or model.image.height_px, width_px or model.image.width_px
        with torch.device("meta"):
            ghost = build_model(model, num_classes=model.num_classes or 1000)
    else:
        height, width = height_px or 224, width_px or 224
        ghost = _without_memory(model)
    ghost.eval()
    if height < 1 or width < 1:
        raise InvalidConfig(f"The image is {height} x {width} px; each side must be 1 or more.")
    x_NCHW = torch.empty(1, 3, height, width, device="meta")
    plain = FlopCounterMode(display=False)
    layers = _LayerCounter(ghost)
    try:
        with torch.no_grad(), layers.watching(), layers, plain:
            ghost(x_NCHW)
    except (RuntimeError, ValueError, AssertionError) as error:
        raise InvalidConfig(f"The network does not take an image of {height} x {width} px: {error}") from None
    return Complexity(
        num_parameters=sum(parameter.numel() for parameter in ghost.parameters()),
        multiply_adds=plain.get_total_flops() // 2,
        layer_ops=layers.total(),
        height_px=height,
        width_px=width,
    )


def _without_memory(model: nn.Module) -> nn.Module:
    """Copy the structure; every tensor of the copy is on the meta device, the original is not touched."""
    tensors: dict[int, Any] = {id(buffer): buffer.to("meta") for buffer in model.buffers()}
    for parameter in model.parameters():
        tensors[id(parameter)] = nn.Parameter(parameter.detach().to("meta"), requires_grad=parameter.requires_grad)
    return copy.deepcopy(model, tensors)


class _LayerCounter(TorchDispatchMode):
    """Apply the paper's rule while the network runs once."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.block_of = {child: parent for parent in network.modules() for child in parent.children()}
        self.running: list[nn.Module] = []
        self.ops = {"convolution": 0, "normalization": 0, "pooling": 0, "linear": 0}
        self.activation_of_block: dict[nn.Module, int] = {}

    def total(self) -> LayerOps:
        return LayerOps(**self.ops, activation=sum(self.activation_of_block.values()))

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Know at each moment which module runs."""

        def enter(module: nn.Module, args: Any) -> None:
            self.running.append(module)

        def leave(module: nn.Module, args: Any, output: Any) -> None:
            self.running.pop()
            if isinstance(module, _LAYERS):
                self._add_layer(module, args[0], output)

        handles = [module.register_forward_pre_hook(enter) for module in self.network.modules()]
        handles += [module.register_forward_hook(leave) for module in self.network.modules()]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _add_layer(self, layer: nn.Module, x: Tensor, y: Tensor) -> None:
        if isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d):
            self.ops["convolution"] += _convolution(y, layer.weight, layer.bias)
        elif isinstance(layer, nn.Linear):
            self.ops["linear"] += y.numel() * (2 * layer.in_features - 1)
        elif isinstance(layer, _BatchNorm):
            self.ops["normalization"] += 4 * x.numel()
        elif isinstance(layer, nn.AdaptiveAvgPool2d):
            self.ops["pooling"] += x.numel() + y.numel()
        else:
            self.activation_of_block[self.block_of.get(layer, layer)] = x.numel()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        y = func(*args, **(kwargs or {}))
        rule = _OPERATORS.get(func)
        if rule is not None and not isinstance(self.running[-1], _LAYERS):
            kind, cost = rule
            if kind != "pooling" or self.running[-1] is not self.network:
                self.ops[kind] += cost(y, *args)
        return y


_LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear, _BatchNorm, nn.AdaptiveAvgPool2d, nn.ReLU, nn.ReLU6)


def _convolution(y: Tensor, weight: Tensor, bias: Tensor | None) -> int:
    return y.numel() * (prod(weight.shape[1:]) + (bias is not None))


def _spatial_mean(y: Tensor, x: Tensor, dims: list[int] | None, *rest: object) -> int:
    """Averages over the last axes of a map are pooling; averages over channels are not."""
    averaged = {dim % x.ndim for dim in dims or range(x.ndim)}
    return x.numel() + y.numel() if 1 not in averaged and x.ndim > 2 else 0


_OPERATORS: dict[Any, tuple[str, Callable[..., int]]] = {
    _ATEN.convolution.default: ("convolution", lambda y, x, weight, bias, *rest: _convolution(y, weight, bias)),
    _ATEN.mean.dim: ("pooling", _spatial_mean),
    _ATEN._adaptive_avg_pool2d.default: ("pooling", lambda y, x, *rest: x.numel() + y.numel()),
    _ATEN.mm.default: ("linear", lambda y, x, weight: y.numel() * (2 * x.shape[1] - 1)),
    _ATEN.addmm.default: ("linear", lambda y, bias, x, weight: y.numel() * (2 * x.shape[1] - 1)),
}
