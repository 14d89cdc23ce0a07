"""The same network behind other servers.

    python -m experiments.bench.peers fastapi|litserve|mosec naive|fp32|auto FOLDER

`naive` is how their guides write it: the network as it was loaded, one worker, their defaults. Otherwise our engine is
inside: the network as our service prepares it in that number format, one thread in each of as many workers as there are
cores, our decoder, our allocator. Prints `serving on URL` when it starts to listen.
"""

import base64
import importlib
import os
import socket
import sys
from typing import Any

_MAX_BATCH = 8
_MAX_WAIT_MS = 5

# Their worker processes find the classes below by name, so that these stand at the top of this module, and know by the
# environment which of them is wanted.
if len(sys.argv) == 4:
    os.environ.setdefault("BENCH_PEER", sys.argv[1])
_PEER = os.environ.get("BENCH_PEER")
litserve: Any = importlib.import_module("litserve") if _PEER == "litserve" else None
mosec: Any = importlib.import_module("mosec") if _PEER == "mosec" else None


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


class Network:
    """What a worker has: pictures in, named classes out.

    Args:
        form: `naive`, or the number format of our engine.
        folder: The package.
    """

    def __init__(self, form: str, folder: str) -> None:
        import torch

        import eca_hub

        self.classifier = eca_hub.Classifier.from_pretrained(folder)
        self._forward: Any = None
        if form != "naive":
            from eca_hub.allocator import keep_freed_memory
            from eca_service.optimize.optimize import optimize_model

            keep_freed_memory()
            torch.set_num_threads(1)
            self._forward = optimize_model(self.classifier, form).new_forwards()["classify"]  # type: ignore[arg-type]

    def decode(self, picture: bytes) -> Any:
        """One picture as the network wants it."""

        transform = self.classifier.transform
        return transform.resize_and_crop(transform.decode(picture))

    def answers(self, pixels: list[Any]) -> list[dict[str, Any]]:
        """Answer for a batch."""
        import torch

        stacked = torch.stack(pixels)
        if self._forward is None:
            rows = self.classifier.probabilities(stacked)
        else:
            with torch.inference_mode():
                rows = self._forward(stacked).softmax(1)
        return [{"predictions": [vars(one) for one in self.classifier.rank(row, 5)]} for row in rows]


def serve_fastapi(form: str, folder: str, port: int) -> None:
    """One picture, one call, in FastAPI's threads."""
    import uvicorn
    from fastapi import FastAPI, Request
    from fastapi.concurrency import run_in_threadpool

    app, network = FastAPI(), Network(form, folder)

    def work(picture: bytes) -> dict[str, Any]:
        return network.answers([network.decode(picture)])[0]

    @app.post("/predict")
    async def predict(request: Request) -> dict[str, Any]:
        return await run_in_threadpool(work, await request.body())

    uvicorn.run(app, port=port, log_level="warning")


class LitServeApi(litserve.LitAPI if litserve else object):  # type: ignore[misc]
    """The five steps that LitServe asks for."""

    def setup(self, device: str) -> None:
        """Load once in every process."""
        self.network = Network(self.form, self.folder)

    def decode_request(self, request: dict[str, str]) -> Any:
        """Decode the picture in a request."""
        return self.network.decode(base64.b64decode(request["image"]))

    def batch(self, inputs: list[Any]) -> list[Any]:
        """Put pictures together."""
        return inputs

    def predict(self, pixels: list[Any]) -> Any:
        """Answer for a batch."""
        return self.network.answers(pixels)

    def unbatch(self, output: Any) -> Any:
        """Take answers apart."""
        return output

    def encode_response(self, output: Any) -> Any:
        """Write one answer."""
        return output


def serve_litserve(form: str, folder: str, port: int) -> None:
    """Batches in processes of their own, behind FastAPI."""
    api = LitServeApi(max_batch_size=_MAX_BATCH, batch_timeout=_MAX_WAIT_MS / 1000)
    api.form, api.folder = form, folder
    # Their faster queue between processes is an option; whoever tunes the engine takes it.
    tuned = {"fast_queue": form != "naive", "workers_per_device": _num_workers(form)}
    server = litserve.LitServer(api, accelerator="cpu", timeout=600, **tuned)
    server.run(host="127.0.0.1", port=port, generate_client_file=False, log_level="warning")


class MosecWorker(mosec.Worker if mosec else object):  # type: ignore[misc]
    """The steps that mosec asks for."""

    def __init__(self) -> None:
        super().__init__()
        self.network = Network(os.environ["BENCH_FORM"], os.environ["BENCH_FOLDER"])

    def deserialize(self, data: bytes) -> bytes:
        """Take the picture out of a request."""
        return data

    def forward(self, data: list[bytes]) -> Any:
        """Answer for a batch."""
        return self.network.answers([self.network.decode(picture) for picture in data])


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
    """Serve until somebody ends us."""
    name, form, folder = argv
    port = free_port()
    print(f"serving on http://127.0.0.1:{port}", flush=True)
    {"fastapi": serve_fastapi, "litserve": serve_litserve, "mosec": serve_mosec}[name](form, folder, port)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
