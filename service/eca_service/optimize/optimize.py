"""A `Classifier` as engines want it: pixels in, logits out, laid out for the processor and held against the original.

Whatever is done for speed is accepted only after a self-test: the faster network answers the same pictures as the one
that was loaded, and where it differs by more than is allowed, it is not used. Knows networks and processors; nothing of
threads, queues or HTTP.

Shapes: N images, H height, W width, K classes; 3 colours, red first.
"""

import logging
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from eca_hub import Classifier
from eca_service.errors import BadSetting, UnfitModel
from eca_service.inference.engine import Forward
from eca_service.inference.model import ParityReport
from eca_service.optimize.compile import CompiledNetwork, check_compiler
from eca_service.optimize.cuda_graphs import CUDAGraphRunner
from eca_service.optimize.fuse import fold_norms
from eca_service.optimize.intra_op_threads import share_cores
from eca_service.optimize.packing import can_pack, pack_convolutions
from eca_service.optimize.parity import compare, is_passed, parity_images
from eca_service.settings import Precision

_USUAL_BATCH = 4

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class OptimizedModel:
    """A network that is ready for engines."""

    new_forward: Callable[[], Forward]
    """Makes pixels to logits, for one engine."""
    device: torch.device
    """Where it runs."""
    module: nn.Module
    """The network itself."""
    num_parameters: int
    """Numbers that the network that was loaded had learned; folding makes some of them one."""
    parity: ParityReport
    """How it compares with the network that was loaded."""
    has_fixed_sizes: bool = False
    """Whether each size of a batch is made ready when it first comes, which takes long; else it takes milliseconds."""


@torch.no_grad()
def optimize_model(
    classifier: Classifier, precision: Precision, *, compiled: bool = False, num_cores: int = 1
) -> OptimizedModel:
    """Make the fastest form of a network that gives the same answers.

    Convolutions on processors and GPUs like the channels of a pixel side by side, a norm after a convolution can be
    part of it, and weights can be laid out once: on two cores that made 15 images/s 64, and half the numbers' width
    doubles it.

    Args:
        classifier: The network as it was loaded.
        precision: A number format; or `auto`, which takes the narrowest that the device computes fast and that passes.
        compiled: Whether torch.compile shall have a go at it.
        num_cores: IntraOpThreads that a picture may have while no other is answered, on a processor.

    Raises:
        BadSetting: the device cannot compute in that format, or nothing can be compiled here.
        UnfitModel: the network that was loaded gives answers that are no numbers.
    """
    parameters = list(classifier.model.parameters())
    device, num_parameters = parameters[0].device, sum(parameter.numel() for parameter in parameters)
    formats = list(_formats(precision, device))
    if compiled:
        check_compiler(device.type)
    pixels_N3HW = parity_images(classifier.transform)
    # The network as it was loaded takes about as long for its answers as all the rest, so they go side by side.
    with ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(1,)) as beside:
        expecting = beside.submit(classifier.probabilities, pixels_N3HW)
        if compiled:
            # The compiler changes how modules are called, in all threads, while it traces.
            expecting.result()
        for dtype in formats:
            module = apply_layout(classifier, dtype, pixels_N3HW[:1].to(device), compiled=compiled)
            new_forward = _forwards_of(module, classifier, device, dtype)
            with torch.inference_mode():
                found_NK = new_forward()(pixels_N3HW).softmax(1)
            expected_NK = expecting.result()
            if not bool(expected_NK.isfinite().all()):
                raise UnfitModel(f"{classifier.model_id} gives answers that are no numbers.", hint="Train it again.")
            test = compare(expected_NK, found_NK, dtype)
            _logger.info("self-test of %s in %s: %s", classifier.model_id, test.precision, test)
            if is_passed(test, dtype):
                is_fixed = compiled or device.type == "cuda"
                # In float32 a second core gains nothing: its threads are waited for as long as they help.
                if dtype != torch.float32 and num_cores > 1 and not is_fixed:
                    new_forward = _shared(new_forward(), num_cores)
                return OptimizedModel(new_forward, device, module, num_parameters, test, is_fixed)
            _logger.warning("%s is not run in %s: its answers move too far", classifier.model_id, test.precision)
    module, test = classifier.model, ParityReport("float32", 1.0, 0.0, len(pixels_N3HW))
    new_forward = _forwards_of(module, classifier, device, torch.float32)
    return OptimizedModel(new_forward, device, module, num_parameters, test, device.type == "cuda")


def bytes_of(module: nn.Module) -> int:
    """Size of a network in memory."""
    return sum(tensor.nbytes for tensor in (*module.parameters(), *module.buffers()))


def empty(module: nn.Module) -> None:
    """Give the memory of a network back, without waiting for whoever still refers to it. It cannot be used again."""
    for each in module.modules():
        for name, buffer in list(each.named_buffers(recurse=False)):
            setattr(each, name, torch.empty(0, dtype=buffer.dtype))
        for parameter in each.parameters(recurse=False):
            parameter.data = torch.empty(0, dtype=parameter.dtype)


def _formats(precision: Precision, device: torch.device) -> Iterator[torch.dtype]:
    """Formats to try, the fastest first; float32 is always the last."""
    if device.type == "cpu":
        if precision == "fp16" and not _supports("fp16"):
            raise BadSetting(
                "This processor does not compute in fp16.",
                hint="Set --precision to auto, bf16 or fp32; fp16 is for GPUs.",
            )
        fast = {"fp16": _supports("fp16"), "bf16": _supports("bf16")}
    else:
        fast = {"fp16": True, "bf16": bool(torch.cuda.is_bf16_supported())}
    # fp16 goes first: it has three bits more than bf16, and the self-test sees when its range is too small.
    for name, dtype in (("fp16", torch.float16), ("bf16", torch.bfloat16)):
        if precision == name or (precision == "auto" and fast[name]):
            yield dtype
    yield torch.float32


def _supports(name: str) -> bool:
    """Whether the processor has instructions for a format, and oneDNN is there to use them."""
    check: Any = getattr(torch.ops.mkldnn, f"_is_mkldnn_{name}_supported", None)
    return bool(check and check()) and (name != "bf16" or _has_bf16_instructions())


def _has_bf16_instructions() -> bool:
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") or capabilities.get("bf16"))


def apply_layout(classifier: Classifier, dtype: torch.dtype, pixels_13HW: Tensor, *, compiled: bool) -> nn.Module:
    """Copy the network in the layout that its device likes best."""
    x_13HW = classifier.transform.normalize(pixels_13HW)
    module = fold_norms(classifier.model, x_13HW).to(dtype).to(memory_format=torch.channels_last)
    if compiled:
        return CompiledNetwork(module)
    is_on_cpu = x_13HW.device.type == "cpu"
    if (
        is_on_cpu
        and can_pack()
        and (dtype == torch.float32 or _supports("bf16" if dtype == torch.bfloat16 else "fp16"))
    ):
        pack_convolutions(module, x_13HW.to(dtype).contiguous(memory_format=torch.channels_last), _USUAL_BATCH)
    return module


def _shared(forward: Forward, num_cores: int) -> Callable[[], Forward]:
    shared = share_cores(forward, num_cores)
    return lambda: shared


def _forwards_of(
    module: nn.Module, classifier: Classifier, device: torch.device, dtype: torch.dtype
) -> Callable[[], Forward]:
    def run(pixels_N3HW: Tensor) -> Tensor:
        x_N3HW = classifier.transform.normalize(pixels_N3HW).to(dtype)
        logits_NK: Tensor = module(x_N3HW.contiguous(memory_format=torch.channels_last))
        return logits_NK.float()

    # On a processor all engines run the same function; on a GPU each has memory and a stream of its own.
    return lambda: CUDAGraphRunner(run, device) if device.type == "cuda" else run
