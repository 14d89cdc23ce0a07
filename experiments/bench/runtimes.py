"""Our network beside ONNX Runtime and OpenVINO on the processor: images a second in two threads of one thread each.

    python -m experiments.bench.runtimes FOLDER SECONDS

Prints one JSON object. A runtime that is not installed is left out.

Neither is an extra of the service, because neither beats our network by 15 %. `ecaresnet26t` at 224 px on two cores, a
quiet machine, batches of 1 / 4 / 8: float32 ours 36 / 37 / 37, ONNX Runtime 38 / 36 / 35, OpenVINO 38 / 37 / 36; bf16
ours 61 / 66 / 65, OpenVINO 69 / 74 / 72.
"""

import importlib
import importlib.util
import json
import os
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from eca_hub.commandline import CommandParser
from experiments.bench.engine import rate_of
from experiments.program import run_program

_SIZES = (1, 4, 8)
_Run = Callable[[Any], Any]


def forms(folder: str) -> Iterator[tuple[str, _Run]]:
    """Each runtime with what runs a batch of normalized images in it."""
    import torch

    from eca_hub import Classifier
    from eca_service.optimize.optimize import optimize_model

    classifier = Classifier.from_pretrained(folder)
    for precision in ("fp32", "auto"):
        network = optimize_model(classifier, precision)
        dtype = next(network.module.parameters()).dtype

        def ours(x_N3HW: Any, module: Any = network.module, dtype: Any = dtype) -> Any:
            with torch.inference_mode():
                return module(x_N3HW.to(dtype).contiguous(memory_format=torch.channels_last))

        yield f"ours, {network.parity.precision}", ours
    with tempfile.TemporaryDirectory() as work:
        file = str(Path(work) / "model.onnx")
        example = torch.zeros(2, 3, 224, 224)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            shapes = ({0: torch.export.Dim("N")},)
            torch.onnx.export(classifier.model, (example,), file, dynamo=True, dynamic_shapes=shapes, verbose=False)
        if importlib.util.find_spec("onnxruntime"):
            yield "ONNX Runtime, float32", _onnxruntime(file)
        if importlib.util.find_spec("openvino"):
            for precision in ("f32", "bf16"):
                yield f"OpenVINO, {precision}", _openvino(file, precision)


def _onnxruntime(file: str) -> _Run:
    onnxruntime = importlib.import_module("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda x_N3HW: session.run(None, {name: x_N3HW.numpy()})


def _openvino(file: str, precision: str) -> _Run:
    openvino = importlib.import_module("openvino")
    hints = {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": len(os.sched_getaffinity(0))}
    streams = {"NUM_STREAMS": len(os.sched_getaffinity(0))}
    compiled = openvino.Core().compile_model(file, "CPU", hints | streams)
    own = threading.local()

    def run(x_N3HW: Any) -> Any:
        if not hasattr(own, "request"):
            own.request = compiled.create_infer_request()
        return own.request.infer([x_N3HW.numpy()])

    return run


def main(argv: list[str]) -> int:
    """Measure and print."""
    parser = CommandParser("bench runtimes", "Measure our network beside ONNX Runtime and OpenVINO.")
    parser.add_argument("folder", help="Package of a classifier for images of 224 px.")
    parser.add_argument("seconds", type=float, help="Seconds of each measurement, 2 at most.")
    args = parser.read(argv)
    import torch

    from eca_hub.allocator import keep_freed_memory

    folder, seconds = args.folder, args.seconds
    keep_freed_memory()
    torch.set_num_threads(1)
    results: dict[str, dict[str, float]] = {}
    cores = len(os.sched_getaffinity(0))
    for name, run in forms(folder):
        results[name] = {}
        for size in _SIZES:
            x_N3HW = torch.rand(size, 3, 224, 224)

            def once(run: _Run = run, x_N3HW: Any = x_N3HW) -> int:
                run(x_N3HW)
                return len(x_N3HW)

            results[name][f"batch_{size}"] = rate_of(once, cores, min(seconds, 2.0))
    print(json.dumps(results))
    return 0


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    run_program(main)
