"""A `Classifier` as engines want it: pixels in, logits out, laid out for the processor and held against the original.

Whatever is done for speed is accepted only after a self-test: the faster network answers the same pictures as the one
that was loaded, and where it differs by more than is allowed, it is not used. Knows networks and processors; nothing of
threads, queues or HTTP.

Shapes: N images, H height, W width, K classes; 3 colours, red first.
"""

import copy
import logging
from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from eca_hub import Classifier
from service.engine import Forward
from service.errors import UnfitModel
from service.running import SelfTest
from service.settings import Precision

MAX_DIFFERENCE = {torch.float32: 1e-4, torch.bfloat16: 2e-2}
"""How far a probability may move in the self-test, by the number format of the network."""

_NUM_TEST_PICTURES = 8

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PreparedNetwork:
    """A network that is ready for engines."""

    forward: Forward
    """Pixels to logits."""
    module: nn.Module
    """The network itself."""
    num_parameters: int
    """Numbers that the network that was loaded had learned; folding makes some of them one."""
    self_test: SelfTest
    """How it compares with the network that was loaded."""


@torch.no_grad()
def prepare_network(classifier: Classifier, precision: Precision) -> PreparedNetwork:
    """Make the fastest form of a network that gives the same answers.

    Convolutions on processors and GPUs like the channels of a pixel side by side, and a norm after a convolution can be
    part of it. On two cores that made 15 images/s 57, and half the numbers' width made them 104.

    Args:
        classifier: The network as it was loaded.
        precision: `fp32`; `bf16`; or `auto`, which takes bf16 where the processor has it.

    Raises:
        UnfitModel: the network that was loaded gives answers that are no numbers.
    """
    pixels_N3HW = _test_pictures(classifier.config.image.height_px, classifier.config.image.width_px)
    expected_NK = classifier.probabilities(pixels_N3HW)
    if not bool(expected_NK.isfinite().all()):
        raise UnfitModel(f"{classifier.model_id} gives answers that are no numbers.", hint="Train it again.")
    parameters = list(classifier.model.parameters())
    device, num_parameters = parameters[0].device, sum(parameter.numel() for parameter in parameters)
    formats = [torch.float32]
    if precision == "bf16" or (precision == "auto" and _has_bf16(device)):
        formats.insert(0, torch.bfloat16)
    for dtype in formats:
        module = (
            fold_norms(classifier.model, classifier.transform.normalize(pixels_N3HW[:1].to(device)))
            .to(dtype)
            .to(memory_format=torch.channels_last)
        )
        forward = _forward_of(module, classifier)
        found_NK = forward(pixels_N3HW).softmax(1)
        test = _compare(expected_NK, found_NK, dtype)
        _logger.info("self-test of %s in %s: %s", classifier.model_id, test.precision, test)
        if test.max_difference <= MAX_DIFFERENCE[dtype] and test.same_top1 == 1.0:
            return PreparedNetwork(forward, module, num_parameters, test)
    module, test = classifier.model, SelfTest("float32", 1.0, 0.0, len(pixels_N3HW))
    return PreparedNetwork(_forward_of(module, classifier), module, num_parameters, test)


def bytes_of(module: nn.Module) -> int:
    """Size of a network in memory."""
    return sum(tensor.nbytes for tensor in (*module.parameters(), *module.buffers()))


def empty(module: nn.Module) -> None:
    """Give the memory of a network back, without waiting for whoever still refers to it. It cannot be used again."""
    for tensor in (*module.parameters(), *module.buffers()):
        tensor.data = torch.empty(0, dtype=tensor.dtype)


@torch.no_grad()
def fold_norms(model: nn.Module, x_N3HW: Tensor) -> nn.Module:
    """Copy a network and make its norms part of the convolutions before them.

    Which norm follows which convolution is seen in one run. torch.fx would tell too, but while it traces it changes how
    modules are called in the whole process, engines of other models included.

    Args:
        model: The network; it is left as it is.
        x_N3HW: Any input of it.
    """
    copied = copy.deepcopy(model)
    outputs: list[tuple[nn.Conv2d, Tensor, int]] = []
    inputs: list[tuple[nn.BatchNorm2d, Tensor, int]] = []
    hooks = []
    for module in copied.modules():
        if type(module) is nn.Conv2d:
            hooks.append(module.register_forward_hook(lambda conv, _, y: outputs.append((conv, y, y._version))))
        elif type(module) is nn.BatchNorm2d:
            hooks.append(module.register_forward_pre_hook(lambda norm, x: inputs.append((norm, x[0], x[0]._version))))
    with _CountUses() as uses:
        copied(x_N3HW)
    for hook in hooks:
        hook.remove()
    num_calls = Counter(id(module) for module, *_ in [*outputs, *inputs])
    # The version tells a tensor that was changed in place on its way.
    made_by = {(id(y_NCHW), version): conv for conv, y_NCHW, version in outputs}
    for norm, y_NCHW, version in inputs:
        conv = made_by.get((id(y_NCHW), version))
        if conv is not None and num_calls[id(conv)] == num_calls[id(norm)] == uses.num_of[id(y_NCHW)] == 1:
            fused = fuse_conv_bn_eval(conv, norm)
            conv.weight, conv.bias = fused.weight, fused.bias
            _replace(copied, norm, nn.Identity())
    return copied


class _CountUses(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts, in this thread only, how many operations read each tensor."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.num_of: Counter[int] = Counter()
        self._kept: list[Any] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        read = [each for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)]
        self.num_of.update(map(id, read))
        # An id is good for as long as its tensor lives.
        self._kept += read
        return func(*args, **(kwargs or {}))


def _replace(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if child is old:
                setattr(parent, name, new)


def _forward_of(module: nn.Module, classifier: Classifier) -> Forward:
    first = next(module.parameters())
    device, dtype = first.device, first.dtype

    def forward(pixels_N3HW: Tensor) -> Tensor:
        x_N3HW = classifier.transform.normalize(pixels_N3HW.to(device, non_blocking=True)).to(dtype)
        logits_NK: Tensor = module(x_N3HW.contiguous(memory_format=torch.channels_last))
        return logits_NK.float().cpu()

    return forward


def _compare(expected_NK: Tensor, found_NK: Tensor, dtype: torch.dtype) -> SelfTest:
    same_N = expected_NK.argmax(1) == found_NK.argmax(1)
    # Between two classes that are closer than the bound, either may come first.
    top2_N2 = expected_NK.topk(min(2, expected_NK.shape[1]), 1).values
    is_close_N = (top2_N2[:, 0] - top2_N2[:, -1]) < 2 * MAX_DIFFERENCE[dtype]
    return SelfTest(
        precision=str(dtype).removeprefix("torch."),
        same_top1=float((same_N | is_close_N).float().mean()),
        max_difference=float((expected_NK - found_NK).abs().nan_to_num(1.0).max()),
        num_pictures=len(expected_NK),
    )


def _test_pictures(height_px: int, width_px: int) -> Tensor:
    """Pictures with large and small shapes in them, the same at every start."""
    dice = torch.Generator().manual_seed(0)
    pictures = []
    for number in range(_NUM_TEST_PICTURES):
        side_px = min(2 ** (number + 1), height_px, width_px)
        coarse_13HW = torch.rand((1, 3, side_px, side_px), generator=dice)
        fine_13HW = nn.functional.interpolate(coarse_13HW, (height_px, width_px), mode="bilinear", align_corners=False)
        pictures.append((fine_13HW * 255).round().to(torch.uint8))
    return torch.cat(pictures)


def _has_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
