"""The same network behind other servers, written as their own guides write it.

    python -m experiments.bench_peers fastapi|litserve|mosec eager|channels_last FOLDER

Prints `serving on URL` when it starts to listen.
"""

import base64
import importlib
import os
import socket
import sys
from typing import Any

_MAX_BATCH = 8

# Their worker processes find the classes below by name, so that they stand at the top of this module.
litserve: Any = importlib.import_module("litserve") if "litserve" in sys.argv else None
mosec: Any = importlib.import_module("mosec") if "mosec" in sys.argv else None


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def load(layout: str, folder: str) -> Any:
    """The network with its labels and preprocessing."""
    import torch

    import eca_hub

    torch.set_num_threads(1)
    classifier = eca_hub.Classifier.from_pretrained(folder)
    if layout == "channels_last":
        classifier.model = classifier.model.to(memory_format=torch.channels_last)
    return classifier


def answer(predictions: Any) -> dict[str, Any]:
    """What a caller gets."""
    return {"predictions": [{"label": one.label, "index": one.index, "score": one.score} for one in predictions]}


def serve_fastapi(layout: str, folder: str, port: int) -> None:
    """One picture, one call, in FastAPI's threads."""
    import uvicorn
    from fastapi import FastAPI, Request
    from fastapi.concurrency import run_in_threadpool

    app, classifier = FastAPI(), load(layout, folder)

    @app.post("/predict")
    async def predict(request: Request) -> dict[str, Any]:
        return answer(await run_in_threadpool(classifier.predict, await request.body()))

    uvicorn.run(app, port=port, log_level="warning")


class LitServeApi(litserve.LitAPI if litserve else object):  # type: ignore[misc]
    """The five steps that LitServe asks for."""

    def setup(self, device: str) -> None:
        """Load once in every process."""
        self.classifier = load(self.layout, self.folder)

    def decode_request(self, request: dict[str, str]) -> bytes:
        """Take the picture out of a request."""
        return base64.b64decode(request["image"])

    def batch(self, inputs: list[bytes]) -> list[bytes]:
        """Put pictures together."""
        return inputs

    def predict(self, pictures: list[bytes]) -> Any:
        """Answer for a batch."""
        return self.classifier.predict(pictures)

    def unbatch(self, output: Any) -> Any:
        """Take answers apart."""
        return output

    def encode_response(self, output: Any) -> dict[str, Any]:
        """Write one answer."""
        return answer(output)


def serve_litserve(layout: str, folder: str, port: int) -> None:
    """Batches in a process for each core."""
    api = LitServeApi(max_batch_size=_MAX_BATCH, batch_timeout=0.005)
    api.layout, api.folder = layout, folder
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=len(os.sched_getaffinity(0)), timeout=600)
    server.run(host="127.0.0.1", port=port, generate_client_file=False, log_level="warning")


class MosecWorker(mosec.Worker if mosec else object):  # type: ignore[misc]
    """The one step that mosec asks for."""

    def __init__(self) -> None:
        super().__init__()
        self.classifier = load(os.environ["BENCH_LAYOUT"], os.environ["BENCH_FOLDER"])

    def deserialize(self, data: bytes) -> bytes:
        """Take the picture out of a request."""
        return data

    def forward(self, data: list[bytes]) -> Any:
        """Answer for a batch."""
        return [answer(row) for row in self.classifier.predict(data)]


def serve_mosec(layout: str, folder: str, port: int) -> None:
    """Batches in a process for each core, behind a server in Rust."""
    os.environ |= {"BENCH_LAYOUT": layout, "BENCH_FOLDER": folder}
    sys.argv = ["mosec", "--port", str(port), "--address", "127.0.0.1", "--timeout", "600000", "--log-level", "error"]
    server = mosec.Server()
    server.append_worker(MosecWorker, num=len(os.sched_getaffinity(0)), max_batch_size=_MAX_BATCH, max_wait_time=5)
    server.run()


def main(argv: list[str]) -> int:
    """Serve until somebody ends us."""
    name, layout, folder = argv
    port = free_port()
    print(f"serving on http://127.0.0.1:{port}", flush=True)
    {"fastapi": serve_fastapi, "litserve": serve_litserve, "mosec": serve_mosec}[name](layout, folder, port)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
