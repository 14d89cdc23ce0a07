"""Train on handwritten digits, publish, serve and classify on this machine, and compare every served prediction.

    eca-hub quickstart [--workdir DIR] [--json] [--keep]

Each step is a separate process, as a user would start it: `eca-hub fit`, `localhub`, `push` and `serve`.
"""

import asyncio
import contextlib
import datetime
import importlib
import json
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from eca_hub.commandline import CommandParser
from eca_hub.errors import InvalidUsage
from eca_hub.paths import expand_home
from eca_hub.processes import Processes, ProcessFailed

CONFIG = Path(__file__).with_suffix(".yaml")
MODEL_ID = "quickstart/eca_resnet20_digits"
NUM_CLASSES = 10
NUM_CLIENTS = 16
TOLERANCE = 1e-3
"""Largest allowed difference in fp32 between a served probability and that of `Classifier.predict` for the same bytes;
in other number formats it is the bound that /v1/models states."""


@dataclass
class Report:
    """Measurements of the run."""

    workdir: str
    model_id: str = MODEL_ID
    revision: str = ""
    test_top1: float = 0.0
    served_top1: float = 0.0
    num_images: int = 0
    mean_batch_size: float = 0.0
    max_difference: float = 0.0
    allowed_difference: float = TOLERANCE
    num_same_top1: int = 0
    precision: str = ""
    images_per_s: float = 0.0
    seconds: dict[str, float] = field(default_factory=dict)


def main(argv: list[str]) -> int:
    """Run all steps; return 0 only if every served prediction equals that of `Classifier`."""
    parser = CommandParser("quickstart", "Train on handwritten digits, publish, serve and classify, on this machine.")
    parser.add_argument("--workdir", help="Folder for all files; a new one in runs/ by default.")
    parser.add_argument("--keep", action="store_true", help="Leave the hub and the service running.")
    parser.add_argument("--json", action="store_true", help="Print one JSON object; progress goes to standard error.")
    args = parser.read(argv)
    for package in ("lightning", "sklearn", "matplotlib", "fastapi", "uvicorn", "lz4"):
        if importlib.util.find_spec(package) is None:
            raise ModuleNotFoundError(f"No module named {package!r}", name=package)

    workdir = _make_workdir(args.workdir)
    progress = sys.stderr if args.json else sys.stdout
    try:
        with Processes(workdir / "logs") as processes:
            urls, report = _run(workdir, processes, progress)
            pids = processes.keep() if args.keep else []
    except ProcessFailed as error:
        print(f"eca-hub quickstart: {error}", file=sys.stderr)
        return 1
    if args.json:
        print(json.dumps({**vars(report), **({"urls": urls, "pids": pids} if args.keep else {})}))
    else:
        _print_table(report, workdir, urls, pids)
    return 0


def _run(workdir: Path, processes: Processes, progress: Any) -> tuple[dict[str, str], Report]:
    report = Report(str(workdir))
    environment = _hub_environment(workdir)
    token_file = workdir / "hub.token"
    # A network this small gains little from a second thread, and on a busy machine two threads that wait for each other
    # are ten times slower than one. One thread also gives the same result on any number of cores.
    os.environ["OMP_NUM_THREADS"] = "1"

    with _timed("train", report, "Training an ECA-ResNet-20 on handwritten digits", progress):
        run_dir = str(workdir / "run")
        processes.run("fit", "--config", str(CONFIG), "--run_dir", run_dir, "--overwrite", "true", stdout=progress)
    report.test_top1 = json.loads((workdir / "run" / "result.json").read_text())["test_top1"]

    with _timed("publish", report, "Publishing it to a local hub", progress):
        hub_args = ("--root", str(workdir / "hub"), "--port", "0", "--token-file", str(token_file))
        hub_url = processes.start("localhub", *hub_args, ready=r"local hub ready: (\S+)", timeout_s=60)
        # huggingface_hub reads its environment when it is imported, which has not happened yet in this process.
        os.environ.update(environment, HF_ENDPOINT=hub_url)
        published = processes.run("push", str(workdir / "run"), MODEL_ID, "--json", stdout=subprocess.PIPE)
        report.revision = json.loads(published)["revision"]

    with _timed("serve", report, "Starting the service, which pulls it from the hub", progress):
        serve_args = ("--model", f"{MODEL_ID}@{report.revision}", "--port", "0")
        service_url = processes.start("serve", *serve_args, ready=r"serving on (\S+)", timeout_s=60)
        files = _write_test_files(workdir / "digits")
        _wait_until_ready(service_url, processes)
        _read_precision(service_url, report)

    with _timed("classify", report, f"Posting {len(files)} PNG files from {NUM_CLIENTS} clients", progress):
        responses = asyncio.run(_post_all(service_url, [content for content, _ in files]))
    report.images_per_s = round(len(files) / report.seconds["classify"], 1)
    _compare(report, files, responses)
    return {"hub": hub_url, "service": service_url}, report


def _make_workdir(given: str | None) -> Path:
    now = datetime.datetime.now().astimezone()
    workdir = expand_home(given or f"runs/quickstart_{now:%Y-%m-%d_%H%M%S}").absolute()
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        token_file = workdir / "hub.token"
        if not token_file.exists():
            token_file.touch(mode=0o600)
            token_file.write_text(secrets.token_urlsafe(32) + "\n")
    except OSError as error:
        raise InvalidUsage(f"{workdir} cannot be used: {error.strerror}.", hint="Give another --workdir.") from None
    return workdir


def _hub_environment(workdir: Path) -> dict[str, str]:
    """Return the environment of a client that uses only the local hub, with a separate cache.

    Variables of the user that would change this, or how the service runs, are removed.
    """
    foreign = ("HF_HUB_OFFLINE", "HUGGINGFACE_CO_STAGING", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_XET_CACHE")
    for name in [name for name in os.environ if name in foreign or name.startswith("ECA_")]:
        del os.environ[name]
    return {
        "HF_TOKEN": (workdir / "hub.token").read_text().strip(),
        "HF_HOME": str(workdir / "cache"),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        # Where both are set, the client reads the one in lower case.
        "NO_PROXY": "127.0.0.1,localhost",
        "no_proxy": "127.0.0.1,localhost",
    }


@contextlib.contextmanager
def _timed(step: str, report: Report, sentence: str, progress: Any) -> Iterator[None]:
    print(f"{sentence} ...", file=progress, flush=True)
    started_s = time.monotonic()
    yield
    report.seconds[step] = round(time.monotonic() - started_s, 2)


def _write_test_files(folder: Path) -> list[tuple[bytes, int]]:
    """Write the test split as PNG files, for the requests and for the user to try."""
    from eca_hub.train.data import DigitsData

    folder.mkdir(exist_ok=True)
    files = list(DigitsData().png_files("test"))
    for index, (content, digit) in enumerate(files):
        (folder / f"{index:03}_is_{digit}.png").write_bytes(content)
    return files


def _wait_until_ready(url: str, processes: Processes) -> None:
    import httpx2

    for _ in range(1200):
        processes.check("serve")
        if httpx2.get(f"{url}/readyz").status_code == 200:
            return
        time.sleep(0.05)
    raise ProcessFailed("the service was not ready after a minute; see logs/serve.log")


def _read_precision(url: str, report: Report) -> None:
    """Record which number format the service has chosen, and how far it may move a probability."""
    import httpx2

    response = httpx2.get(f"{url}/v1/models")
    if response.status_code != 200:
        raise ProcessFailed(f"/v1/models got status {response.status_code}: {response.text}")
    [model] = response.json()["models"]
    report.precision = model["precision"]
    if report.precision != "float32":
        report.allowed_difference = model["parity"]["allowed_difference"]


async def _post_all(url: str, files: list[bytes]) -> list[dict[str, Any]]:
    """Post every file once, from several clients at a time, so that batches form."""
    import httpx2

    responses: list[dict[str, Any]] = [{}] * len(files)
    work = iter(enumerate(files))

    async def client_loop(client: httpx2.AsyncClient) -> None:
        for index, content in work:
            headers = {"Content-Type": "image/png"}
            response = await client.post(f"{url}/v1/classify?top_k={NUM_CLASSES}", content=content, headers=headers)
            if response.status_code != 200:
                raise ProcessFailed(f"image {index} got status {response.status_code}: {response.text}")
            responses[index] = response.json()

    async with httpx2.AsyncClient(timeout=60) as client:
        await asyncio.gather(*(client_loop(client) for _ in range(NUM_CLIENTS)))
    return responses


def _compare(report: Report, files: list[tuple[bytes, int]], responses: list[dict[str, Any]]) -> None:
    """Compare every response with the label, and with the prediction of `Classifier` for the same bytes."""
    from eca_hub import Classifier

    classifier = Classifier.from_pretrained(MODEL_ID, report.revision)
    predictions = classifier.predict([content for content, _ in files], top_k=NUM_CLASSES)
    num_correct = 0
    num_batches = 0.0
    for index, ((_, digit), response, prediction) in enumerate(zip(files, responses, predictions, strict=True)):
        served = {each["label"]: each["score"] for each in response["predictions"]}
        expected = {each.label: each.score for each in prediction}
        difference = max(abs(served[label] - score) for label, score in expected.items())
        report.max_difference = max(report.max_difference, difference)
        report.num_same_top1 += max(served, key=served.__getitem__) == max(expected, key=expected.__getitem__)
        if difference > report.allowed_difference:
            raise ProcessFailed(f"image {index} got other predictions from the service than from Classifier: {served}")
        if response["revision"] != report.revision:
            raise ProcessFailed(
                f"image {index} was classified by revision {response['revision']}, not {report.revision}"
            )
        num_correct += max(served, key=served.__getitem__) == str(digit)
        num_batches += 1 / response["batch_size"]
    report.num_images = len(files)
    report.served_top1 = num_correct / len(files)
    report.mean_batch_size = round(len(files) / num_batches, 2)


def _print_table(report: Report, workdir: Path, urls: dict[str, str], pids: list[int]) -> None:
    rows = {
        "test accuracy": f"{report.test_top1:.4f} (measured by the training run)",
        "served accuracy": f"{report.served_top1:.4f} ({report.num_images} PNG files over HTTP)",
        "same as library": f"the same class for {report.num_same_top1} of {report.num_images} images, probabilities "
        f"within {report.max_difference:.1e} ({report.allowed_difference:g} is allowed)",
        "precision": f"{report.precision}, chosen by --precision auto; --precision fp32 is exact",
        "throughput": f"{report.images_per_s:.0f} images/s from {NUM_CLIENTS} clients",
        "mean batch": f"{report.mean_batch_size:.2f} images",
        "model": f"{report.model_id}@{report.revision}",
        "seconds": "  ".join(f"{step} {seconds:.1f}" for step, seconds in report.seconds.items()),
        "files": str(workdir),
    }
    print()
    for name, value in rows.items():
        print(f"  {name:<18}{value}")
    image_path = next((workdir / "digits").iterdir())
    print("\nNext:")
    if pids:
        print(f"  curl --data-binary @{image_path} {urls['service']}/v1/classify     # docs: {urls['service']}/docs")
        print(f"  HF_ENDPOINT={urls['hub']} eca-hub classify {image_path} --model {MODEL_ID}")
        print(f"  kill {' '.join(map(str, pids))}     # stops the hub and the service")
    else:
        print(f"  eca-hub classify {image_path} --model {workdir / 'run'}")
        print(f"  eca-hub serve --model {workdir / 'run'} --port 8000")
        print("  eca-hub fit --help")
