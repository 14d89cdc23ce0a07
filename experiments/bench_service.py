"""How fast the service answers, beside its own engine alone and beside other servers, all in one run.

    python -m experiments.bench_service [--seconds 5] [--clients 1 8 32 64] [--plot FILE] [--json]

Servers: ours; ours around no network; FastAPI without batching; LitServe and mosec where they are installed, as their
README has it (eager) and with the network laid out as ours is. Load comes from a process of its own: closed loop at
each number of clients, then open loop at three times what ours can do. `foreign` is the share of the processors that
others took meanwhile: figures with more than 5 % of it are worth little.
"""

import base64
import importlib.util
import io
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from eca_hub.commandline import CommandParser
from experiments.bench_load import content_type_of

_START_S = 90.0
LOAD, PEER = "experiments.bench_load", "experiments.bench_peers"


class ServerEnded(Exception):
    """A server that ended, or never answered; tells the end of its log."""


@dataclass
class Row:
    """One server at one load."""

    server: str
    clients: int
    """0 is open loop."""
    per_s: float
    p50_ms: float
    p99_ms: float
    num_refused: int
    num_unanswered: int
    memory_mib: float
    start_s: float
    foreign: float


def main(argv: list[str]) -> int:
    """Measure and print."""
    parser = CommandParser("bench service", "Measure the service beside its engine and beside other servers.")
    parser.add_argument("--seconds", type=float, default=5.0, help="How long each figure takes.")
    parser.add_argument("--clients", type=list[int], default=[1, 8, 32, 64], help="Numbers of callers: [1, 32].")
    parser.add_argument("--architecture", default="ecaresnet26t", help="The network, with random weights.")
    parser.add_argument("--device", default="cpu", help="Where ours runs: cpu or cuda.")
    parser.add_argument("--precision", default="fp32", help="Number format of ours: fp32 or auto.")
    parser.add_argument("--plot", help="Where to draw the table, such as service.png.")
    parser.add_argument("--json", action="store_true", help="Print one JSON object.")
    args = parser.read(argv)
    # So that `finally` ends the servers, whoever ends us.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        picture = make_picture()
        (work / "picture.jpg").write_bytes(picture)
        make_package(args.architecture, work / "model")
        engine = measure_engine(work, picture, args.seconds)
        rows: list[Row] = []
        for name, command, path, body in servers(work, picture, args):
            clients = [32] if name == "ours, no network" else args.clients
            try:
                rows += measure(name, command, path, body, clients, args.seconds, engine)
            except ServerEnded as error:
                print(f"{name} did not answer: {error}", file=sys.stderr)
    if args.plot:
        draw(rows, engine, args.plot)
    if args.json:
        print(json.dumps({"engine": engine, "rows": [asdict(row) for row in rows]}))
    else:
        print_table(rows, engine)
    return 0


def make_picture() -> bytes:
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
    eca_hub.save_pretrained(eca_hub.create_model(architecture), config, folder)


def measure_engine(work: Path, picture: bytes, seconds: float) -> dict[str, float]:
    """The raw limit: our network in threads, without HTTP, queue or, but for one figure, decoding."""
    command = [sys.executable, "-m", "service.bare", "engine", str(work / "model"), str(seconds)]
    figures: dict[str, float] = json.loads(
        subprocess.run(command, input=picture, check=True, capture_output=True).stdout
    )
    return figures


def servers(work: Path, picture: bytes, args: Any) -> Iterator[tuple[str, list[str], str, bytes]]:
    """Each server's name, command, the path that it answers at and the body that it wants."""
    serve = ("-m", "eca_hub", "serve", "--model", str(work / "model"), "--port", "0", "--device", args.device)
    yield "ours", [*serve, "--precision", args.precision], "/v1/classify", picture
    yield "ours, no network", ["-m", "service.bare", "noop"], "/v1/classify", picture
    in_json = json.dumps({"image": base64.b64encode(picture).decode()}).encode()
    for name, path, body in (
        ("fastapi", "/predict", picture),
        ("litserve", "/predict", in_json),
        ("mosec", "/inference", picture),
    ):
        if importlib.util.find_spec(name) is None:
            print(f"{name} is not installed", file=sys.stderr)
            continue
        for layout in ("eager", "channels_last"):
            yield f"{name}, {layout}", ["-m", PEER, name, layout, str(work / "model")], path, body


def measure(
    name: str, command: list[str], path: str, body: bytes, clients: list[int], seconds: float, engine: dict[str, float]
) -> Iterator[Row]:
    """Start a server, warm it up, and load it in every way."""
    print(f"{name} ...", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory() as folder, started(command, Path(folder)) as (process, url):
        target = Path(folder) / "body"
        target.write_bytes(body)
        start_s = wait_for_answer(process, f"{url}{path}", target)
        if start_s is None:
            raise ServerEnded((Path(folder) / "log").read_text()[-1500:])
        loads = [("closed", number, 0.0) for number in clients]
        if name != "ours, no network":
            loads.append(("open", 0, 3 * engine["with_decoding"]))
        for kind, number, rate in loads:
            before = busy_s(process.pid)
            words = [sys.executable, "-m", LOAD, kind, f"{url}{path}", str(target), str(number or rate), str(seconds)]
            load = subprocess.run(words, check=True, capture_output=True)
            found = json.loads(load.stdout)
            after = busy_s(process.pid)
            ours_s = after[1] - before[1] + found.pop("cpu_s")
            foreign = max(0.0, (after[0] - before[0] - ours_s) / ((after[2] - before[2]) or 1))
            yield Row(name, number, **found, memory_mib=memory_mib(process.pid), start_s=start_s, foreign=foreign)


@contextmanager
def started(command: list[str], folder: Path) -> Iterator[tuple["subprocess.Popen[bytes]", str]]:
    """A server from its line on standard output to its end, with whatever it started itself."""
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, *command], stdout=subprocess.PIPE, stderr=log, env=environment(), start_new_session=True
        )
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if found := re.match(rb"serving on (\S+)", line):
                yield process, found[1].decode()
                return
        raise ServerEnded((folder / "log").read_text()[-1500:])
    finally:
        os.killpg(process.pid, 9)
        process.wait()


def environment() -> dict[str, str]:
    """What every server gets: one thread for each engine, as ours has."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("ECA_")}
    return kept | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def wait_for_answer(process: "subprocess.Popen[bytes]", url: str, body: Path) -> float | None:
    """Seconds from the start of the process to its first answer; None where there is none."""
    import httpx2

    # The boot time of the machine and ticks since then: the process has been running since before we got here.
    started_s = int(_stat(process.pid)[19]) / os.sysconf("SC_CLK_TCK")
    content = body.read_bytes()
    headers = {"content-type": content_type_of(content)}
    deadline_s = time.monotonic() + _START_S
    while time.monotonic() < deadline_s:
        try:
            if httpx2.post(url, content=content, headers=headers, timeout=60).status_code == 200:
                return time.clock_gettime(time.CLOCK_BOOTTIME) - started_s
        except httpx2.TransportError:
            pass
        if process.poll() is not None:
            break
        time.sleep(0.05)
    return None


def busy_s(pid: int) -> tuple[float, float, float]:
    """Processor seconds that all of the machine, and this process with its children, have used, and that passed."""
    tick = os.sysconf("SC_CLK_TCK")
    fields = [int(field) for field in Path("/proc/stat").read_text().split("\n")[0].split()[1:9]]
    ours = sum(int(field) for each in family(pid) for field in _stat(each)[11:13])
    return (sum(fields) - fields[3] - fields[4]) / tick, ours / tick, sum(fields) / tick


def memory_mib(pid: int) -> float:
    """Proportional share of memory of a process and its children."""
    texts = [Path(f"/proc/{each}/smaps_rollup").read_text() for each in family(pid)]
    return sum(int(found[1]) for text in texts if (found := re.search(r"Pss:\s+(\d+)", text))) / 1024


def family(pid: int) -> list[int]:
    """A process and all below it."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *(each for child in children for each in family(int(child)))]


def _stat(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def print_table(rows: list[Row], engine: dict[str, float]) -> None:
    """For people."""
    print("the engine alone, images/s: " + "  ".join(f"{name} {value:.1f}" for name, value in engine.items()))
    print(f"{'server':<24}{'clients':>8}{'per s':>9}{'of limit':>9}{'p50 ms':>9}{'p99 ms':>9}{'refused':>8}", end="")
    print(f"{'lost':>6}{'MiB':>7}{'start s':>8}{'foreign':>8}")
    for row in rows:
        share = f"{row.per_s / engine['with_decoding']:.2f}" if row.server != "ours, no network" else ""
        print(f"{row.server:<24}{row.clients or 'open':>8}{row.per_s:>9.1f}{share:>9}{row.p50_ms:>9.1f}", end="")
        print(f"{row.p99_ms:>9.1f}{row.num_refused:>8}{row.num_unanswered:>6}{row.memory_mib:>7.0f}", end="")
        print(f"{row.start_s:>8.1f}{row.foreign:>8.0%}")


def draw(rows: list[Row], engine: dict[str, float], file: str) -> None:
    """Answers a second over the number of callers, one line a server, and the limit above them."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 5))
    closed = [row for row in rows if row.clients and row.server != "ours, no network"]
    for name in dict.fromkeys(row.server for row in closed):
        line = [row for row in closed if row.server == name]
        axes.plot([row.clients for row in line], [row.per_s for row in line], marker="o", label=name)
    axes.axhline(engine["with_decoding"], linestyle="--", color="gray", label="engine and decoder alone")
    axes.set(xlabel="callers at once", ylabel="pictures a second", xscale="log", ylim=0)
    axes.legend()
    figure.savefig(file, dpi=150)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
