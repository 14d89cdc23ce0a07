"""Images a second of a plain engine that shares no code with ours: the limit that the service is compared with.

    python -m experiments.bench.plain_engine FOLDER fp32|bf16 SECONDS < IMAGE

The network as timm builds it, batch norms merged by torch.fx, channels_last, optionally in bf16, in one thread for each
core; images decoded by Pillow and resized by torchvision. It is what an engineer writes in an afternoon, so that the
peers (peers.py) get it as well. FOLDER is a package that stock timm can load. Prints one JSON object.

Shapes: N images, H height, W width, K classes; 3 colors, red first.
"""

import io
import json
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

_SIZES = (1, 4, 8, 16)


class PlainEngine:
    """A network with its preprocessing.

    Args:
        folder: The package.
        precision: `fp32` or `bf16`.
    """

    def __init__(self, folder: str, precision: str) -> None:
        import timm
        from safetensors.torch import load_file
        from timm.data import create_transform, resolve_data_config  # type: ignore[attr-defined,unused-ignore]
        from torch.fx.experimental.optimization import fuse

        config = json.loads(Path(folder, "config.json").read_text())
        network = timm.create_model(config["architecture"], num_classes=config["num_classes"])
        network.load_state_dict(load_file(Path(folder, "model.safetensors")))
        settings = resolve_data_config(config.get("pretrained_cfg", {}), model=network)  # type: ignore[no-untyped-call]
        self.labels = config.get("label_names") or [str(index) for index in range(config["num_classes"])]
        self._transform: Any = create_transform(**settings, is_training=False)
        self._dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
        fused: nn.Module = fuse(network.eval())
        self._network = fused.to(self._dtype).to(memory_format=torch.channels_last)

    def decode(self, data: bytes) -> Tensor:
        """Decode one image to normalized float32 (3, H, W)."""
        x_3HW: Tensor = self._transform(Image.open(io.BytesIO(data)).convert("RGB"))
        return x_3HW

    def forward(self, x_N3HW: Tensor) -> Tensor:
        """Map a batch to probabilities, float32 (N, K)."""
        with torch.inference_mode():
            x_N3HW = x_N3HW.to(self._dtype).contiguous(memory_format=torch.channels_last)
            logits_NK: Tensor = self._network(x_N3HW)
            return logits_NK.float().softmax(1)


def rate_of(work: Callable[[], int], num_threads: int, seconds: float) -> float:
    """Images a second of several threads that repeat `work`, which returns its number of images."""
    totals: list[float] = []
    work()
    begin_s = time.perf_counter()

    def run() -> None:
        count = 0
        while time.perf_counter() < begin_s + seconds:
            count += work()
        totals.append(count / (time.perf_counter() - begin_s))

    threads = [threading.Thread(target=run) for _ in range(num_threads)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(totals)


def main(argv: list[str]) -> int:
    """Measure and print."""
    folder, precision, seconds_text = argv
    seconds, num_cores = float(seconds_text), len(os.sched_getaffinity(0))
    data = sys.stdin.buffer.read()
    torch.set_num_threads(1)
    engine = PlainEngine(folder, precision)
    x_3HW = engine.decode(data)

    def of_size(size: int) -> Callable[[], int]:
        x_N3HW = torch.stack([x_3HW] * size)
        return lambda: len(engine.forward(x_N3HW))

    figures: dict[str, float | str] = {f"batch_{size}": rate_of(of_size(size), num_cores, seconds) for size in _SIZES}
    figures["with_decoding"] = rate_of(
        lambda: len(engine.forward(torch.stack([engine.decode(data) for _ in range(4)]))), num_cores, seconds
    )
    figures["batch_1_ms"] = 1000 / rate_of(of_size(1), 1, seconds)
    figures["format"] = precision
    torch.set_num_threads(num_cores)
    figures["batch_1_all_cores_ms"] = 1000 / rate_of(of_size(1), 1, seconds)
    print(json.dumps(figures))
    return 0


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main(sys.argv[1:]))
