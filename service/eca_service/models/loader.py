"""From the name of a model to a running model: pull, check, start engines, warm up.

torch is imported here, in a thread, after the port is open: `/healthz` answers while the weights come. Knows nothing
of HTTP.
"""

import asyncio
import copy
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from eca_hub import give_memory_back
from eca_service.errors import BadSetting
from eca_service.inference.batcher import Batcher
from eca_service.inference.model import ModelInfo, ServedModel
from eca_service.models.registry import ModelSource
from eca_service.settings import Settings

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

    from eca_hub import Classifier
    from eca_service.optimize.optimize import OptimizedModel

Result = TypeVar("Result")

_MIN_ITEMS = 64
"""Refusing so few costs more than it saves: callers who ask again at once take the time that engines need."""

_NICENESS = 10
"""Of the thread for large pictures: it gets a tenth of a core where others want all of it."""

_logger = logging.getLogger(__name__)


def end_process() -> None:
    """End in good order, so that whoever started this process starts another, with a device that works."""
    _logger.critical("a device is beyond help in this process, which ends")
    os.kill(os.getpid(), signal.SIGTERM)


class ModelLoader:
    """Opens models that share one pool of decoder threads.

    Args:
        settings: How to run them.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._num_cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        if settings.compile:
            # The compiler looks when it is imported. What it makes is good for the next start; its default is /tmp.
            cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
            os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache / "eca-hub" / "compiled"))
        self._threads = ThreadPoolExecutor(settings.num_decoders or self._num_cores, "decoder")
        self._large_thread = ThreadPoolExecutor(1, "large pictures", initializer=_yield_to_others)

    async def open(self, source: ModelSource) -> ServedModel["Tensor", "Tensor"]:
        """Load a model, warm it up and start to serve it.

        Raises:
            HubError: the package is not to be had, or its bytes are not what the hub announced.
            CheckpointMismatch: the weights do not fit the network.
        """
        return await self._start(await _in_thread(lambda: _load(source, self._settings, self._num_cores)))

    async def _start(self, loaded: "_Loaded") -> ServedModel["Tensor", "Tensor"]:
        import torch

        from eca_hub import GpuJpegDecoder, ImageLimits
        from eca_service.inference.decoder import Decoder
        from eca_service.inference.engine import Engine, scores_of
        from eca_service.inference.explainer import Explainer
        from eca_service.optimize.optimize import empty

        classifier = loaded.classifier
        settings, image = self._settings, classifier.config.image
        limits = ImageLimits(max_bytes=int(settings.max_image_mib * 2**20), max_mpx=settings.max_image_mpx)
        on_gpu = settings.decode_on == "gpu"
        gpu_jpegs = GpuJpegDecoder(classifier.transform, limits, str(loaded.networks[0].device)) if on_gpu else None
        decoder = Decoder(classifier.transform, limits, self._threads, self._large_thread, gpu_jpegs=gpu_jpegs)
        facts = _facts_of(loaded)
        engines = [
            Engine(
                network.new_forward(),
                rebuild=network.new_forward,
                on_fatal_error=end_process,
                hang_timeout_s=settings.hang_timeout_s,
                waits_for_device=network.device.type != "cpu",
            )
            for network in loaded.networks
            for _ in range(settings.num_engines or (self._num_cores if network.device.type == "cpu" else 2))
        ]
        explainer = Explainer(loaded.explained) if loaded.explained else None

        def free() -> None:
            for engine in engines:
                engine.close()
            if explainer is not None:
                explainer.close()
            for module in loaded.modules:
                empty(module)
            threading.Thread(target=give_memory_back, name="give back", daemon=True).start()

        max_batch = settings.max_batch or (4 if all(one.device.type == "cpu" for one in loaded.networks) else 32)
        sizes = _batch_sizes(max_batch) if any(one.has_fixed_sizes for one in loaded.networks) else [1]
        blank = torch.zeros((image.height_px, image.width_px, 3), dtype=torch.uint8).permute(2, 0, 1)
        try:
            await asyncio.gather(*(engine.warm_up(blank, sizes) for engine in engines))
        except BaseException:
            free()
            raise
        batcher: Batcher[Tensor, Tensor] = Batcher(
            [engine.run for engine in engines],
            max_batch=max_batch,
            max_wait_ms=settings.max_wait_ms,
            max_items=settings.max_queue_images,
            max_queue_delay_s=settings.max_queue_s,
            min_items=min(_MIN_ITEMS, settings.max_queue_images),
            s_per_item=max(engine.s_per_image for engine in engines),
        )
        batcher.start()

        return ServedModel(
            facts,
            decode=decoder.decode,
            batcher=batcher,
            postprocess=lambda logits, top_k, activation: classifier.rank(scores_of(logits, activation), top_k),
            deadline_s=settings.deadline_ms / 1000,
            close=free,
            is_healthy=lambda: all(engine.is_healthy for engine in engines),
            explain=explainer.explain if explainer else None,
        )

    def close(self) -> None:
        """Let the decoder threads end."""
        for threads in (self._threads, self._large_thread):
            threads.shutdown(wait=False, cancel_futures=True)


@dataclass(frozen=True)
class _Loaded:
    classifier: "Classifier"
    """Labels and preprocessing, with the network of the engines."""
    networks: "list[OptimizedModel]"
    """The network of the engines, once for each device."""
    explained: "Classifier | None"
    """The network as it was loaded: engines and explanations must not meet in one."""

    @property
    def modules(self) -> list["Module"]:
        return [*(network.module for network in self.networks), *([self.explained.model] if self.explained else [])]


def _load(source: ModelSource, settings: Settings, num_cores: int) -> _Loaded:
    import torch

    from eca_hub import Classifier
    from eca_service.optimize.optimize import optimize_model

    if settings.device == "auto":
        settings = settings.on("cuda" if torch.cuda.is_available() else "cpu")
    devices = settings.devices
    for device in devices:
        try:
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError):
            raise BadSetting(f"There is no {device} on this machine.", hint="Set --device to one that is.") from None
    # This thread's work is done before the engines', each of which has one core.
    torch.set_num_threads(1)
    classifier = Classifier.from_pretrained(source.id_or_folder, source.revision, device=devices[0])
    copies = [classifier, *(_copied_to(device, classifier) for device in devices[1:])]
    networks = [
        optimize_model(one, settings.precision, compiled=settings.compile, num_cores=num_cores) for one in copies
    ]
    explained = None
    if settings.explain:
        explained = _copied_to(devices[0], classifier)
    classifier.model = networks[0].module
    # The network as it was loaded, and what the self-test needed.
    give_memory_back()
    return _Loaded(classifier, networks, explained)


def _yield_to_others() -> None:
    """Make the calling thread take what others leave of the processor."""
    if sys.platform == "linux":
        # There a thread has a niceness of its own; elsewhere the whole process would get it.
        niceness = min(os.getpriority(os.PRIO_PROCESS, 0) + _NICENESS, 19)
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), niceness)


def _copied_to(device: str, classifier: "Classifier") -> "Classifier":
    """The same classifier with weights of its own."""
    copied = copy.copy(classifier)
    copied.model = copy.deepcopy(classifier.model).to(device)
    return copied


def _facts_of(loaded: _Loaded) -> ModelInfo:
    from eca_service.optimize.optimize import bytes_of

    classifier, networks, config = loaded.classifier, loaded.networks, loaded.classifier.config
    return ModelInfo(
        model_id=classifier.model_id,
        revision=classifier.revision,
        architecture=config.architecture,
        attention=config.attention,
        labels=config.labels,
        height_px=config.image.height_px,
        width_px=config.image.width_px,
        num_parameters=networks[0].num_parameters,
        device=",".join(str(network.device) for network in networks),
        # The one that moved furthest speaks for all.
        parity=max((network.parity for network in networks), key=lambda test: test.max_difference),
        weights_bytes=sum(map(bytes_of, loaded.modules)),
    )


def _batch_sizes(max_batch: int) -> list[int]:
    """Sizes to make ready, where each takes long: the powers of two and the largest."""
    sizes = {2**power for power in range(max_batch.bit_length())} | {max_batch}
    return sorted(size for size in sizes if size <= max_batch)


async def _in_thread(work: Callable[[], Result]) -> Result:
    """Do `work` in a daemon thread, so that a download that hangs cannot hold up the end of the process."""
    future: Future[Any] = Future()

    def run() -> None:
        future.set_running_or_notify_cancel()
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name="loader", daemon=True).start()
    return await asyncio.wrap_future(future)
