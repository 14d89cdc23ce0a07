"""A `Classifier` as engines run it: pixels in, outputs out, optimized for the device and compared with the original.

An optimization is used only after a parity check: the optimized network must name the same class for every stored
image, and no probability may move by more than the bound of its number format. Otherwise the next format is tried, and
at last the network as it was loaded.

Shapes: N images, H height, W width, K classes; 3 colors, red first.
"""

import copy
import ctypes
import logging
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from eca_hub import Classifier, EvalTransform
from eca_hub.processor import has_instructions
from eca_service.errors import BadSetting
from eca_service.inference.engine import Forward
from eca_service.inference.tasks import CLASSIFIER_TASKS, Task
from eca_service.inference.types import Activation, ParityReport
from eca_service.optimize.compile import CompiledNetwork, check_compiler
from eca_service.optimize.cuda_graphs import CUDAGraphRunner
from eca_service.optimize.fuse import can_pack, fold_norms, observe_convolutions, pack_convolutions
from eca_service.optimize.intra_op_threads import share_cores
from eca_service.optimize.parity import compare, is_passed, parity_images
from eca_service.settings import Precision

_TYPICAL_BATCH = 4

_logger = logging.getLogger(__name__)

Forwards = Mapping[str, Callable[[Any], Any]]
"""Task name to the function that maps a collated batch to float32 rows on the CPU."""


@dataclass(frozen=True)
class OptimizedModel:
    """A network that is ready for engines."""

    new_forwards: Callable[[], Forwards]
    """Makes the forward of each task, for one engine."""
    device: torch.device
    """Where it runs."""
    module: nn.Module
    """The network itself."""
    num_parameters: int
    """Learned parameters of the network as it was loaded; fusing merges some of them."""
    parity: ParityReport
    """Comparison with the network as it was loaded."""
    tasks: tuple[str, ...]
    """Names of the tasks that the network supports."""
    has_fixed_sizes: bool = False
    """Whether the first batch of each size takes long, because something is compiled or captured for it."""


@torch.no_grad()
def optimize_model(
    classifier: Classifier, precision: Precision, *, compiled: bool = False, num_cores: int = 1
) -> OptimizedModel:
    """Make the fastest form of a network that passes the parity check.

    Convolutions prefer channels_last on processors and GPUs, a norm can be merged into the convolution before it, and
    weights can be laid out once: on two cores that made 64 images/s of 15, and a number format of half the width
    doubles it.

    Args:
        classifier: The network as it was loaded.
        precision: A number format; `auto` takes the first that the device computes fast and that passes.
        compiled: Whether to use torch.compile.
        num_cores: Cores that an image may use while no other is being run, on a processor.

    Raises:
        BadSetting: the device cannot compute in that format, or there is no compiler.
        EcaHubError: the outputs of the network as it was loaded are not finite; the code is `unfit_model`.
    """
    loaded = as_loaded(classifier)
    device = loaded.device
    formats = number_formats(precision, device)
    if compiled:
        check_compiler(device.type)
    pixels_N3HW = parity_images(classifier.transform)
    # The network as it was loaded takes about as long for its outputs as all the rest, so both run at once.
    with ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(1,)) as thread:
        expecting = thread.submit(classifier.probabilities, pixels_N3HW)
        if compiled:
            # While the compiler traces, it patches module calls in all threads.
            expecting.result()
        rejected: list[str] = []
        for dtype in formats:
            module = apply_layout(classifier, dtype, pixels_N3HW[:1].to(device), compiled=compiled)
            new_forwards = _forwards_for(module, classifier.transform, device, dtype)
            first = new_forwards()[CLASSIFIER_TASKS[0].name]
            actual_NK = _probabilities(first, pixels_N3HW, classifier.config.activation)
            expected_NK = expecting.result()
            report = replace(compare(expected_NK, actual_NK, dtype), rejected=tuple(rejected))
            if is_passed(report):
                _logger.info("%s runs in %s: %s", classifier.model_id, report.precision, describe(report))
                is_fixed = compiled or loaded.has_fixed_sizes
                # In float32 a second core gains nothing: its threads cost as much as they help.
                if dtype != torch.float32 and num_cores > 1 and not is_fixed:
                    new_forwards = _sharing_cores(new_forwards(), num_cores)
                return replace(
                    loaded, new_forwards=new_forwards, module=module, parity=report, has_fixed_sizes=is_fixed
                )
            _logger.warning("%s does not run in %s: %s", classifier.model_id, report.precision, describe(report))
            rejected.append(report.precision)
    report = ParityReport("float32", 1.0, 0.0, len(pixels_N3HW), rejected=tuple(rejected))
    return replace(loaded, parity=report)


def as_loaded(classifier: Classifier) -> OptimizedModel:
    """Run a network as it was loaded, in float32."""
    parameters = list(classifier.model.parameters())
    device = parameters[0].device
    return OptimizedModel(
        new_forwards=_forwards_for(classifier.model, classifier.transform, device, torch.float32),
        device=device,
        module=classifier.model,
        num_parameters=sum(parameter.numel() for parameter in parameters),
        parity=ParityReport("float32", 1.0, 0.0, 0),
        tasks=tuple(task.name for task in CLASSIFIER_TASKS if task.is_supported_by(classifier.model)),
        has_fixed_sizes=device.type == "cuda",
    )


def describe(report: ParityReport) -> str:
    """A sentence for the log."""
    return (
        f"the same class for {report.same_top1:.0%} of {report.num_images} stored images, probabilities moved by at "
        f"most {report.max_difference:.2g} ({report.allowed_difference:g} is allowed)"
    )


def num_bytes(module: nn.Module) -> int:
    """Size of a network in memory."""
    return sum(tensor.nbytes for tensor in (*module.parameters(), *module.buffers()))


def release_memory(module: nn.Module) -> None:
    """Free the memory of a network while references to it remain. It cannot be used again."""
    for each in module.modules():
        for name, buffer in list(each.named_buffers(recurse=False)):
            setattr(each, name, torch.empty(0, dtype=buffer.dtype))
        for parameter in each.parameters(recurse=False):
            parameter.data = torch.empty(0, dtype=parameter.dtype)


def trim_heap() -> None:
    """Return freed memory to the system. Only with glibc, which the commands configure to keep freed memory."""
    if sys.platform.startswith("linux"):
        try:
            ctypes.CDLL(None).malloc_trim(0)
        except (OSError, AttributeError):
            return


def apply_layout(classifier: Classifier, dtype: torch.dtype, pixels_13HW: Tensor, *, compiled: bool) -> nn.Module:
    """Copy the network in the memory layout that its device prefers."""
    module = copy.deepcopy(classifier.model)
    flow = observe_convolutions(module, classifier.transform.normalize(pixels_13HW))
    fold_norms(module, flow)
    module.to(dtype).to(memory_format=torch.channels_last)
    if compiled:
        return CompiledNetwork(module)
    is_fast = dtype == torch.float32 or _supports("bf16" if dtype == torch.bfloat16 else "fp16")
    if pixels_13HW.device.type == "cpu" and can_pack() and is_fast:
        pack_convolutions(module, flow, _TYPICAL_BATCH)
    return module


def _probabilities(forward: Forward, pixels_N3HW: Tensor, activation: Activation) -> Tensor:
    # In the batches that are served, so that nothing is compiled for this size alone.
    with torch.inference_mode():
        logits_NK = torch.cat([forward(chunk_N3HW) for chunk_N3HW in torch.split(pixels_N3HW, _TYPICAL_BATCH)])
        return Classifier.to_scores(logits_NK, activation)


def number_formats(precision: Precision, device: torch.device) -> list[torch.dtype]:
    """Return the number formats to try, the fastest first; float32 is always the last.

    Raises:
        BadSetting: the device cannot compute in that format.
    """
    if device.type == "cpu":
        if precision == "fp16" and not _supports("fp16"):
            raise BadSetting(
                "This processor does not compute in fp16.",
                hint="Set --precision to auto, bf16 or fp32; fp16 is for GPUs.",
            )
        # Without matrix instructions of its own, fp16 takes three times as long as bf16 and longer than fp32.
        fast = {"fp16": _supports("fp16") and has_instructions("fp16", for_matrices=True), "bf16": _supports("bf16")}
    else:
        fast = {"fp16": True, "bf16": bool(torch.cuda.is_bf16_supported())}
    # fp16 goes first: it has three bits more than bf16, and the parity check finds out when its range is too small.
    formats = {"fp16": torch.float16, "bf16": torch.bfloat16}
    chosen = [dtype for name, dtype in formats.items() if precision == name or (precision == "auto" and fast[name])]
    return [*chosen, torch.float32]


def _supports(name: str) -> bool:
    """Whether the processor has instructions for a format, and oneDNN uses them."""
    check: Any = getattr(torch.ops.mkldnn, f"_is_mkldnn_{name}_supported", None)
    return bool(check and check()) and (name != "bf16" or has_instructions("bf16"))


def _sharing_cores(forwards: Forwards, num_cores: int) -> Callable[[], Forwards]:
    shared = {name: share_cores(forward, num_cores) for name, forward in forwards.items()}
    return lambda: shared


def _forwards_for(
    module: nn.Module, transform: EvalTransform, device: torch.device, dtype: torch.dtype
) -> Callable[[], Forwards]:
    # Only the first task is compiled: each takes minutes.
    eager = module.network if isinstance(module, CompiledNetwork) else module

    def forward_of(task: type[Task[Any]]) -> Forward:
        network = module if task is CLASSIFIER_TASKS[0] else eager

        def run(pixels_N3HW: Tensor) -> Tensor:
            x_N3HW = transform.normalize(pixels_N3HW).to(dtype)
            rows: Any = task.forward(network, x_N3HW.contiguous(memory_format=torch.channels_last))
            return rows.float()  # type: ignore[no-any-return]

        # On a processor all engines run the same function; on a GPU each has memory and a stream of its own.
        return CUDAGraphRunner(run, device) if device.type == "cuda" else run

    return lambda: {task.name: forward_of(task) for task in CLASSIFIER_TASKS if task.is_supported_by(eager)}
