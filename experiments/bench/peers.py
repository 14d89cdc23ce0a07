"""The same network behind other servers.

    python -m experiments.bench.peers fastapi|litserve|mosec FORM FOLDER

FORM is one of

    naive                  as their guides write it: the network as it was loaded, one worker, their defaults
    plain_fp32, plain_bf16 a plain engine that shares no code with ours (plain_engine.py)
    fp32, auto             our engine: the network as our service optimizes it, our decoder, our allocator

With an engine there is one thread in each of as many workers as there are cores. Prints `serving on URL` when the
server starts to listen.
"""

import base64
import importlib
import os
import socket
import sys
from collections.abc import Callable
from typing import Any, cast

_MAX_BATCH = 8
_MAX_WAIT_MS = 5

# Their worker processes import the classes below by name, so that these are at module level; an environment variable
# selects one.
if len(sys.argv) == 4:
    os.environ.setdefault("BENCH_PEER", sys.argv[1])
_PEER = os.environ.get("BENCH_PEER")
litserve: Any = importlib.import_module("litserve") if _PEER == "litserve" else None
mosec: Any = importlib.import_module("mosec") if _PEER == "mosec" else None


def free_port() -> int:
    """A free port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


class Network:
    """The model of one worker: maps images to named classes.

    Args:
        form: As above.
        folder: The package.
    """

    def __init__(self, form: str, folder: str) -> None:
        import torch

        if form.startswith("plain_"):
            from experiments.bench.plain_engine import PlainEngine

            torch.set_num_threads(1)
            plain = PlainEngine(folder, form.removeprefix("plain_"))
            self.labels = list(plain.labels)
            self.decode: Callable[[bytes], Any] = plain.decode
            self._probabilities: Callable[[Any], Any] = plain.forward
            return
        import eca_hub

        classifier = eca_hub.Classifier.from_pretrained(folder)
        transform = classifier.transform
        self.labels = list(classifier.config.labels)
        self.decode = lambda data: transform.resize_and_crop(transform.decode(data))
        self._probabilities = classifier.probabilities
        if form != "naive":
            from eca_hub.allocator import keep_freed_memory
            from eca_service.optimize.optimize import optimize_model

            keep_freed_memory()
            torch.set_num_threads(1)
            forward = optimize_model(classifier, cast(Any, form)).new_forwards()["classify"]
            self._probabilities = lambda pixels: forward(pixels).softmax(1)

    def run(self, inputs: list[Any]) -> list[dict[str, Any]]:
        """Run a batch of decoded images."""
        import torch

        with torch.inference_mode():
            scores, indices = self._probabilities(torch.stack(inputs)).topk(5)
        return [
            {"predictions": [{"label": self.labels[i], "index": i, "score": s} for s, i in zip(*row, strict=True)]}
            for row in zip(scores.tolist(), indices.tolist(), strict=True)
        ]


def serve_fastapi(form: str, folder: str, port: int) -> None:
    """One image in a batch, in FastAPI's threads."""
    import uvicorn
    from fastapi import FastAPI, Request
    from fastapi.concurrency import run_in_threadpool

    app, network = FastAPI(), Network(form, folder)

    def work(image: bytes) -> dict[str, Any]:
        return network.run([network.decode(image)])[0]

    @app.post("/predict")
    async def predict(request: Request) -> dict[str, Any]:
        return await run_in_threadpool(work, await request.body())

    uvicorn.run(app, port=port, log_level="warning")


class LitServeApi(litserve.LitAPI if litserve else object):  # type: ignore[misc]
    """The five methods that LitServe requires."""

    def setup(self, device: str) -> None:
        """Load once in every process."""
        self.network = Network(self.form, self.folder)

    def decode_request(self, request: dict[str, str]) -> Any:
        """Decode the image of a request."""
        return self.network.decode(base64.b64decode(request["image"]))

    def batch(self, inputs: list[Any]) -> list[Any]:
        """Return the batch."""
        return inputs

    def predict(self, pixels: list[Any]) -> Any:
        """Run a batch."""
        return self.network.run(pixels)

    def unbatch(self, output: Any) -> Any:
        """Return the results one by one."""
        return output

    def encode_response(self, output: Any) -> Any:
        """Return one response."""
        return output


def serve_litserve(form: str, folder: str, port: int) -> None:
    """Batches in processes of their own, behind FastAPI."""
    api = LitServeApi(max_batch_size=_MAX_BATCH, batch_timeout=_MAX_WAIT_MS / 1000)
    api.form, api.folder = form, folder
    # Their faster queue between processes is an option, which a tuned deployment takes.
    tuned = {"fast_queue": form != "naive", "workers_per_device": _num_workers(form)}
    server = litserve.LitServer(api, accelerator="cpu", timeout=600, **tuned)
    server.run(host="127.0.0.1", port=port, generate_client_file=False, log_level="warning")


class MosecWorker(mosec.Worker if mosec else object):  # type: ignore[misc]
    """The methods that mosec requires."""

    def __init__(self) -> None:
        super().__init__()
        self.network = Network(os.environ["BENCH_FORM"], os.environ["BENCH_FOLDER"])

    def deserialize(self, data: bytes) -> bytes:
        """Return the body of a request."""
        return data

    def forward(self, data: list[bytes]) -> Any:
        """Run a batch."""
        return self.network.run([self.network.decode(image) for image in data])


def serve_mosec(form: str, folder: str, port: int) -> None:
    """Batches in processes of their own, behind a server in Rust."""
    os.environ |= {"BENCH_FORM": form, "BENCH_FOLDER": folder}
    sys.argv = ["mosec", "--port", str(port), "--address", "127.0.0.1", "--timeout", "600000", "--log-level", "error"]
    server = mosec.Server()
    server.append_worker(MosecWorker, num=_num_workers(form), max_batch_size=_MAX_BATCH, max_wait_time=_MAX_WAIT_MS)
    server.run()


def _num_workers(form: str) -> int:
    return 1 if form == "naive" else len(os.sched_getaffinity(0))


def main(argv: list[str]) -> int:
    """Serve until the process is terminated."""
    name, form, folder = argv
    port = free_port()
    print(f"serving on http://127.0.0.1:{port}", flush=True)
    {"fastapi": serve_fastapi, "litserve": serve_litserve, "mosec": serve_mosec}[name](form, folder, port)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
