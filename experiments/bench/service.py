"""Throughput and latency of the service, beside a plain engine without HTTP and beside other servers.

    python -m experiments.bench.service                          everything, one part after the other
    python -m experiments.bench.service --only mosec             one part, which takes a few minutes
    python -m experiments.bench.service --report --plot FILE     table and plot of what was measured before

Parts: the plain engine alone, which shares no code with ours and is the limit (plain_engine.py), with ours beside it;
ours; ours around no network; FastAPI without batching; LitServe and mosec as their guides have it, with the plain
engine and with ours inside; the start; other runtimes. The same photo-like JPEG goes to all, the same five classes come
back.
Load comes from a process of its own: closed loop at each number of clients, then open loop at three times the limit.
Every part measures the limit again, because machines change their speed within minutes: compare shares of the limit. A
window in which other processes took more than 5 % of the processors is measured again.

The pipeline's limit is what all cores could do if nothing but decoding, the network and HTTP took time:

    cores * 1000 / (model ms + decode ms + HTTP ms, each of one thread)

What to expect of a GPU: a roofline, predicted and not measured, for `ecaresnet26t` at 224 px in fp16 on one H200 (990
TFLOP/s, 4.8 TB/s, PCIe 5 at some 50 GB/s) with 16 cores beside it. The arithmetic of an image, 2.55 G multiply-adds,
takes 5 us. Its layers read and write 31 M numbers, 61 MB, which takes 13 us: memory is the limit of the GPU, at 77,000
images/s at the very most. The pixels, 147 KB, take 3 us, while another batch is computed. Decoding takes 3.3 ms of one
core: 16 cores make 4,800 images/s. And one event loop gives the requests/s of the part `noop` (0.4 to 0.5 ms of a busy
core each, so some 2,000). So HTTP is the limit with one image a request, decoding with many, and never the GPU: hold
a GPU run against 2,000 requests/s with one image each, and 4,800 images/s with 32 in a request.
"""

import base64
import importlib.util
import io
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from eca_hub.commandline import CommandParser
from eca_hub.errors import InvalidUsage
from experiments.bench.server_process import Row, Served, ServerEnded, figures_of, started
from experiments.bench.service_report import draw, fastest_of, limit_of, print_report
from experiments.program import run_program

PARTS = ("engine", "ours", "noop", "fastapi", "litserve", "mosec", "start", "runtimes")
_PEER = "experiments.bench.peers"
_OVERLOAD = 3.0
_FORMS = (
    ("plain_fp32", "plain engine", "fp32"),
    ("plain_bf16", "plain engine", "bf16"),
    ("fp32", "our engine", "fp32"),
    ("auto", "our engine", "auto"),
)
"""Form of a peer, its name in the table, and the number format of its network."""


def main(argv: list[str]) -> int:
    """Measure and print."""
    parser = CommandParser("bench service", "Measure the service beside its engine and beside other servers.")
    parser.add_argument("--only", default=",".join(PARTS), help="Parts, separated by commas, such as ours,noop.")
    parser.add_argument("--report", action="store_true", help="Measure nothing; print what was measured before.")
    parser.add_argument("--quick", action="store_true", help="One-second windows at 1 and 32 clients: does it run?")
    parser.add_argument("--seconds", type=float, default=5.0, help="How long each figure takes.")
    parser.add_argument("--clients", type=list[int], default=[1, 8, 32, 64], help="Numbers of clients: [1, 32].")
    parser.add_argument("--architecture", default="ecaresnet26t", help="The network, with random weights.")
    parser.add_argument("--device", default="cpu", help="Where ours runs: cpu or cuda.")
    parser.add_argument("--results", default="runs/bench_service.json", help="Where figures are kept between calls.")
    parser.add_argument("--plot", default="runs/bench_service.png", help="Where to draw them.")
    parser.add_argument("--json", action="store_true", help="Print one JSON object.")
    args = parser.read(argv)
    parts = args.only.split(",")
    if unknown := set(parts) - set(PARTS):
        raise InvalidUsage(f"There is no part {', '.join(sorted(unknown))}.", hint=f"Parts: {', '.join(PARTS)}.")
    if args.quick:
        args.seconds, args.clients = 1.0, [1, 32]
    results = Path(args.results)
    saved_results: dict[str, Any] = json.loads(results.read_text()) if results.exists() else {}
    if not args.report:
        results.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as folder:
            bench = Bench(Path(folder), args)
            for part in parts:
                saved_results[part] = bench.measure(part)
                results.write_text(json.dumps(saved_results, indent=1))
    if args.json:
        print(json.dumps(saved_results))
    else:
        print_report(saved_results)
    draw(saved_results, args.plot)
    return 0


class Bench:
    """Measures parts.

    Args:
        work: An empty folder.
        args: The options of the command.
    """

    def __init__(self, work: Path, args: Any) -> None:
        self._args = args
        self._precisions = ["fp32", "bf16"]
        self._folder = str(work / "model")
        self._image = make_image()
        make_package(args.architecture, work / "model")
        self._in_json = json.dumps({"image": base64.b64encode(self._image).decode()}).encode()

    def measure(self, part: str) -> dict[str, Any]:
        """Measure one part: its rows, and the limit at the time."""
        log(f"{part}: the limit ...")
        results: dict[str, Any] = {"when": time.strftime("%Y-%m-%d %H:%M"), "cores": len(os.sched_getaffinity(0))}
        results["limit"] = {precision: self._plain(precision) for precision in self._precisions}
        self._leave_out_emulated(results["limit"])
        if part == "engine":
            results["ours"] = {precision: self._ours(precision) for precision in ("fp32", "auto")}
        elif part == "start":
            results["start"] = self._start()
        elif part == "runtimes":
            results["runtimes"] = figures_of("experiments.bench.runtimes", self._folder, str(self._args.seconds))
            results["foreign"] = results["runtimes"].pop("foreign")
        else:
            results["rows"] = [
                asdict(row) for served in self._servers(part) for row in self._rows(served, results["limit"])
            ]
        return results

    def _leave_out_emulated(self, limit: dict[str, dict[str, Any]]) -> None:
        """Skip bf16 from here on if the processor emulates it, which takes many times as long."""
        fp32, bf16 = (limit[each]["with_decoding"] if each in limit else 0.0 for each in ("fp32", "bf16"))
        if 0 < bf16 < fp32 / 2:
            log(f"bf16 is emulated here, {bf16:.1f} images/s against {fp32:.1f}: its rows are left out.")
            self._precisions.remove("bf16")

    def _plain(self, precision: str) -> dict[str, Any]:
        seconds = str(min(self._args.seconds, 2.0))
        return figures_of("experiments.bench.plain_engine", self._folder, precision, seconds, body=self._image)

    def _ours(self, precision: str) -> dict[str, Any]:
        seconds = str(min(self._args.seconds, 2.0))
        arguments = ("experiments.bench.engine", self._folder, precision, self._args.device, seconds)
        return figures_of(*arguments, body=self._image)

    def _servers(self, part: str) -> Iterator[Served]:
        """The servers of a part, each in all its forms."""
        if part == "noop":
            yield Served(
                "ours, no network", ["-m", "experiments.bench.noop_service"], "/v1/classify", self._image, {}, "none"
            )
        elif part == "ours":
            serve = ["-m", "eca_hub", "serve", "--model", self._folder, "--port", "0", "--device", self._args.device]
            for precision in ("fp32", "auto"):
                yield Served("ours", [*serve, "--precision", precision], "/v1/classify", self._image, {}, precision)
            yield Served("ours, --compile", [*serve, "--compile"], "/v1/classify", self._image, {}, "auto")
        else:
            if importlib.util.find_spec(part) is None:
                log(f"{part} is not installed: pip install 'eca-hub[bench]'")
                return
            path, body = {
                "fastapi": ("/predict", self._image),
                "litserve": ("/predict", self._in_json),
                "mosec": ("/inference", self._image),
            }[part]
            # As installed: with the threads and the allocator of their defaults.
            yield Served(f"{part}, as installed", ["-m", _PEER, part, "naive", self._folder], path, body)
            if part != "fastapi":
                forms = [each for each in _FORMS if each[2] in (*self._precisions, "auto")]
                for form, name, precision in forms:
                    command = ["-m", _PEER, part, form, self._folder]
                    one_thread = {"OMP_NUM_THREADS": "1"}
                    yield Served(f"{part}, {name}", command, path, body, one_thread, precision)

    def _rows(self, served: Served, limit: dict[str, dict[str, Any]]) -> Iterator[Row]:
        """Start a server and load it in every way."""
        seconds = self._args.seconds
        try:
            with started(served) as server:
                for clients in [32] if served.precision == "none" else self._args.clients:
                    log(f"{served.name} in {served.precision}, {clients} clients ...")
                    yield server.load(clients, 0.0, seconds)
                # In the faster number format only.
                fastest = fastest_of(limit)
                if limit_of(served.precision, limit) is fastest or served.name.startswith("fastapi"):
                    log(f"{served.name} in {served.precision}, open loop at {_OVERLOAD:g} times the limit ...")
                    yield server.load(0, _OVERLOAD * fastest["with_decoding"], 2 * seconds)
        except ServerEnded as error:
            log(f"{served.name} failed: {error}")

    def _start(self) -> dict[str, float]:
        """Time to the first response at defaults, beside importing torch and timm and loading the weights."""
        plain, floors, ours = [], [], []
        for _ in range(3):
            plain.append(figures_of("experiments.bench.import_baseline", "timm", self._folder)["start_s"])
            floors.append(figures_of("experiments.bench.import_baseline", "eca_hub", self._folder)["start_s"])
            served = next(server for server in self._servers("ours") if server.precision == "auto")
            with started(served) as server:
                ours.append(server.start_s)
        return {"plain_s": min(plain), "floor_s": min(floors), "ours_s": min(ours)}


def make_image() -> bytes:
    """A JPEG of 500 x 375 px with as much detail as a photo."""
    from PIL import Image

    noise = Image.effect_noise((125, 94), 80).resize((500, 375), Image.Resampling.BICUBIC)
    slope = Image.linear_gradient("L").resize((500, 375))
    file = io.BytesIO()
    Image.merge("RGB", (noise, slope, Image.blend(noise, slope, 0.5))).save(file, "JPEG", quality=90)
    return file.getvalue()


def make_package(architecture: str, folder: Path) -> None:
    """A package of a network that was never trained: it takes as long as one that was."""
    import eca_hub

    labels = tuple(f"class {index}" for index in range(1000))
    config = eca_hub.ModelConfig(architecture, labels=labels, image=eca_hub.ImageConfig(224, 224))
    model = eca_hub.create_model(architecture, attention=config.attention)
    eca_hub.save_pretrained(model, folder, config=config)


def log(line: str) -> None:
    """Print the progress."""
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    run_program(main)
