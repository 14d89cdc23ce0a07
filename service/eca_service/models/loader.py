"""From the name of a model to a served model: pull, verify, start engines, warm up, optimize.

torch is imported here, in a thread, after the port is open: `/healthz` responds while the weights are fetched.
"""

import asyncio
import logging
import os
import signal
import threading
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eca_hub import EcaHubError
from eca_hub.processor import num_usable_cores
from eca_service.errors import BadSetting, UnfitModel
from eca_service.inference.batcher import Batcher
from eca_service.inference.model import ServedModel
from eca_service.inference.tasks import TASKS, WorkItem, run_batch
from eca_service.inference.types import ModelInfo
from eca_service.models.daemon_thread import run_in_daemon_thread
from eca_service.models.source import ModelSource
from eca_service.settings import Settings

if TYPE_CHECKING:
    from torch import Tensor

    from eca_hub import ImageLimits
    from eca_service.inference.decoder import DecoderThreads
    from eca_service.inference.engine import RunBatch
    from eca_service.models.package import LoadedPackage
    from eca_service.optimize.optimize import OptimizedModel

_logger = logging.getLogger(__name__)


class ModelLoader:
    """Opens models, which share one set of decoder threads.

    Args:
        settings: How to run them.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._num_cores = num_usable_cores()
        if settings.compile:
            _keep_compiled()
        self._decoder_threads: DecoderThreads | None = None
        self._is_ending = threading.Lock()
        self.is_draining: Callable[[], bool] = lambda: False
        """Returns whether the process is ending already, so that a lost device does not cut its drain short."""

    async def open(self, source: ModelSource) -> ServedModel["Tensor", "Tensor"]:
        """Load a model, warm it up and start to serve it.

        Raises:
            HubError: the package cannot be fetched, or its bytes are not what the hub announced.
            CheckpointMismatch: the weights do not fit the network.
            UnfitModel: the network does not run, or its outputs are not finite.
        """
        name = source.id_or_folder
        try:
            return await self._start(await run_in_daemon_thread(lambda: _load(source, self._settings, self._num_cores)))
        except EcaHubError:
            raise
        except ArithmeticError as error:
            raise UnfitModel(
                f"The network of {source.public_id} gives no finite scores for ordinary images: its weights are "
                "damaged, or those of another architecture.",
                hint="Download the package again, or train the network again.",
            ) from error
        except Exception as error:
            # The package is well-formed, and yet its network fails on ordinary images.
            _logger.exception("running %s failed", name)
            raise UnfitModel(
                f"The network of {name} does not run: {type(error).__name__}.", hint="See the log."
            ) from error

    def end_process(self) -> None:
        """Shut down gracefully because a device is lost for good, so that a supervisor starts another process.

        Each engine of the device calls this; a second signal would end the process at once.
        """
        if self._is_ending.acquire(blocking=False) and not self.is_draining():
            _logger.critical("a device is lost in this process, which shuts down")
            os.kill(os.getpid(), signal.SIGTERM)

    async def _start(self, loaded: "LoadedPackage") -> ServedModel["Tensor", "Tensor"]:
        from eca_service.inference.decoder import Decoder, DecoderThreads

        settings = self._settings
        if self._decoder_threads is None:
            self._decoder_threads = DecoderThreads(settings.num_decoders or self._num_cores)
        decoder = Decoder(
            loaded.inputs, _image_limits(settings), self._decoder_threads, max_wait_s=settings.max_queue_delay_s
        )
        max_batch = settings.max_batch or loaded.max_batch
        running = _RunningPackage(loaded, settings, self._num_cores, self.end_process)
        try:
            await running.warm_up(max_batch)
        except BaseException:
            running.free()
            raise
        batcher: Batcher[WorkItem, Tensor] = Batcher(
            [engine.run for engine in running.engines],
            max_batch=max_batch,
            max_wait_ms=settings.max_wait_ms,
            max_items=settings.max_inflight_images,
            max_queue_delay_s=settings.max_queue_delay_s,
            s_per_item=max(engine.s_per_image for engine in running.engines),
        )
        batcher.start()
        return ServedModel(
            loaded.info,
            reserve_decoding=decoder.reserve,
            batcher=batcher,
            deadline_s=settings.deadline_ms / 1000,
            close=running.free,
            is_healthy=lambda: all(engine.is_healthy for engine in running.engines),
            explainer=running.explainer,
            optimize=running.optimize,
            decode_waits_s=self._decoder_threads.expected_waits_s,
        )

    def close(self) -> None:
        """Let the decoder threads end."""
        if self._decoder_threads is not None:
            self._decoder_threads.close()


class _RunningPackage:
    """A package with the engines that run its networks.

    Args:
        loaded: The package.
        settings: How to run it.
        num_cores: Cores of this process.
        on_fatal_error: Called when a device stays lost in this process.
    """

    def __init__(
        self, loaded: "LoadedPackage", settings: Settings, num_cores: int, on_fatal_error: Callable[[], None]
    ) -> None:
        from eca_service.inference.engine import Engine
        from eca_service.inference.explainer import Explainer

        self._loaded = loaded
        self._is_optimizing = False
        [self._task] = [task for task in TASKS if task.name == loaded.info.tasks[0]]
        self._engines_of = [
            [
                Engine(
                    _run_batch_of(network),
                    rebuild=partial(_run_batch_of, network),
                    on_fatal_error=on_fatal_error,
                    hang_timeout_s=settings.hang_timeout_s,
                    waits_for_device=network.device.type != "cpu",
                )
                for _ in range(settings.num_engines or (num_cores if network.device.type == "cpu" else 2))
            ]
            for network in loaded.networks
        ]
        self.engines = [engine for engines in self._engines_of for engine in engines]
        """The engines of all devices."""
        self.explainer = Explainer(loaded.explained) if loaded.explained else None
        """Explains single images, if that is switched on."""

    async def warm_up(self, max_batch: int) -> None:
        """Run the examples; each batch size of each task, where that takes long at first.

        Raises:
            ArithmeticError: an output is not finite.
        """
        items = [WorkItem(self._task, example) for example in self._loaded.examples]
        if any(network.has_fixed_sizes for network in self._loaded.networks):
            # The last batch, of which the time is kept, is one of the first task.
            tasks = [task for task in reversed(TASKS) if task.name in self._loaded.info.tasks]
            firsts = [WorkItem(task, self._loaded.examples[0]) for task in tasks]
            batches, num_runs = [[first] * size for first in firsts for size in _batch_sizes(max_batch)], 2
            await asyncio.gather(*(engine.warm_up(batches, num_runs=num_runs) for engine in self.engines))
            return
        # The engines of each device share the examples.
        await asyncio.gather(
            *(
                engine.warm_up([items[index :: len(engines)] or items[:1]], num_runs=1)
                for engines in self._engines_of
                for index, engine in enumerate(engines)
            )
        )

    async def optimize(self) -> ModelInfo:
        """Let the engines run the faster form of the package, if there is one; return what is known of it.

        The engines run the networks as they were loaded until the faster ones have passed the parity check and have
        run one image; after their current batch they run those. Both are in memory meanwhile. If anything fails, the
        networks as they were loaded stay.
        """
        optimize = self._loaded.optimize
        if optimize is None:
            return self._loaded.info
        _logger.info("%s runs in float32 as it was loaded, while it is optimized", self._loaded.info.model_id)
        self._is_optimizing = True
        try:
            optimized = await run_in_daemon_thread(lambda: self._optimized(optimize))
        except Exception:
            _logger.exception("optimizing %s failed; it runs as it was loaded", self._loaded.info.model_id)
            optimized = replace(self._loaded, optimize=None)
        self._is_optimizing = False
        for engines, network in zip(self._engines_of, optimized.networks, strict=True):
            for engine in engines:
                engine.replace_network(_run_batch_of(network), partial(_run_batch_of, network))
        self._loaded = optimized
        _trim_heap_later()
        return optimized.info

    def free(self) -> None:
        """End the engines and free the memory of the networks."""
        from eca_service.optimize.optimize import release_memory

        for engine in self.engines:
            engine.close()
        explained = self._loaded.explained
        if self.explainer is not None and explained is not None:
            self.explainer.close(lambda: release_memory(explained.model))
        # A thread that optimizes a network still reads it. Its memory is freed with that thread.
        if not self._is_optimizing:
            for network in self._loaded.networks:
                release_memory(network.module)
        _trim_heap_later()

    def _optimized(self, optimize: "Callable[[], LoadedPackage]") -> "LoadedPackage":
        import torch

        torch.set_num_threads(1)
        optimized = optimize()
        item = WorkItem(self._task, optimized.examples[0])
        with torch.inference_mode():
            for network in optimized.networks:
                # The first image by itself takes longer than the next.
                _run_batch_of(network)([item])
        return optimized


def _keep_compiled() -> None:
    """Keep the compiler's output for the next start, where there is a cache folder; its default is in /tmp.

    The compiler reads the variable when it is imported.
    """
    if "TORCHINDUCTOR_CACHE_DIR" in os.environ:
        return
    try:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "eca-hub" / "compiled"
        if folder.is_absolute():
            folder.mkdir(parents=True, exist_ok=True)
    except (RuntimeError, OSError):
        # The user has no home folder, or it cannot be written.
        return
    if folder.is_absolute() and os.access(folder, os.W_OK):
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder)


def _load(source: ModelSource, settings: Settings, num_cores: int) -> "LoadedPackage":
    import torch

    from eca_hub import Classifier, Detector, load_predictor
    from eca_service.models.classifiers import prepare_classifier
    from eca_service.models.detectors import prepare_detector

    prepare: dict[type[Any], Callable[..., LoadedPackage]] = {
        Classifier: prepare_classifier,
        Detector: prepare_detector,
    }
    if settings.device == "auto":
        settings = settings.on("cuda" if torch.cuda.is_available() else "cpu")
    devices = settings.devices
    for device in devices:
        try:
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError):
            raise BadSetting(f"There is no {device} on this machine.", hint="Set --device to one that is.") from None
    # This thread's work is done before the engines start, each of which has one core.
    torch.set_num_threads(1)
    predictor = load_predictor(source.location, source.revision, device=devices[0])
    predictor.model_id = source.public_id
    # Ray bounds the cores of a replica by the number of its engines alone.
    num_threads = min(num_cores, settings.num_engines or num_cores)
    loaded = prepare[type(predictor)](predictor, settings, devices, _image_limits(settings), num_threads)
    if loaded.optimize is None:
        # The network as it was loaded, and what the parity check needed.
        _trim_heap_later()
    return loaded


def _trim_heap_later() -> None:
    from eca_service.optimize.optimize import trim_heap

    threading.Thread(target=trim_heap, name="trim heap", daemon=True).start()


def _image_limits(settings: Settings) -> "ImageLimits":
    from eca_hub import ImageLimits

    return ImageLimits(max_bytes=int(settings.max_image_mib * 2**20), max_mpx=settings.max_image_mpx)


def _run_batch_of(network: "OptimizedModel") -> "RunBatch":
    forwards = network.new_forwards()
    return lambda items: run_batch(forwards, items)


def _batch_sizes(max_batch: int) -> list[int]:
    """Batch sizes to warm up, where each takes long: the powers of two and the largest."""
    sizes = {2**power for power in range(max_batch.bit_length())} | {max_batch}
    return sorted(size for size in sizes if size <= max_batch)
