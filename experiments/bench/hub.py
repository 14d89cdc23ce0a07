"""How fast packages travel: push and pull over loopback, and a warm load, each as a ratio to its floor in the same run.

    python -m experiments.bench.hub [--mib '[100, 1024]'] [--repeats 3] [--json]

Floors: for push and pull, copying the same file and hashing it with sha256, which no verified transfer can
avoid; for a warm `Classifier.from_pretrained`, reading the same weights with safetensors. Limit of the client: the
unmodified huggingface_hub making the same commit, or the same download, with a hub that checks and keeps nothing
(`noop_hub.py`), so that a reader sees which part is ours. Each figure is the best of the repeats, taken in turns, so
that a busy moment hits all sides.

`eca-hub push` to a hub on this machine is an upload by LFS; the stock client of other programs uploads by Xet. The
local hub syncs what it stores, and the floor does not: the last line is the same floor with an fsync of the copy.
"""

import gc
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from logging import ERROR
from pathlib import Path
from typing import Any

from eca_hub.allocator import keep_freed_memory
from eca_hub.commandline import CommandParser
from eca_hub.processes import Processes
from experiments.bench import noop_hub
from experiments.program import run_program

_TRANSFERS = ("push", "pull", "push by Xet")


def main(argv: list[str]) -> int:
    """Measure and print."""
    parser = CommandParser("bench hub", "Measure push, pull and warm load against their floors.")
    parser.add_argument("--mib", type=list[int], default=[100], help="Sizes of the weights, in MiB: [100, 1024].")
    parser.add_argument("--repeats", type=int, default=3, help="Tries of each figure; the best counts.")
    parser.add_argument("--json", action="store_true", help="Print one JSON object.")
    args = parser.read(argv)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder, Processes(Path(folder) / "logs") as processes:
        work = Path(folder)
        # As `eca-hub push` and `pull` do; it helps the client alone and copying as well.
        keep_freed_memory()
        # The client reads these when it is imported, which has not happened yet.
        os.environ.update(HF_HOME=str(work / "cache"), HF_HUB_DISABLE_PROGRESS_BARS="1", NO_PROXY="127.0.0.1")
        url = processes.start(
            "localhub", "--root", str(work / "hub"), "--port", "0", ready=r"local hub ready: (\S+)", timeout_s=60
        )
        token = (work / "hub" / "token").read_text().strip()
        for mib in args.mib:
            rows += _measure_transfer(work, url, token, mib, args.repeats)
        rows.append(_measure_warm_load(work, url, token, args.repeats))
    if args.json:
        print(json.dumps(rows))
    else:
        for row in rows:
            ratio = row["s"] / row["floor_s"]
            line = f"{row['what']:<22} {row['mib']:>5.0f} MiB {row['s']:>7.3f} s   ratio {ratio:.2f} to {row['floor']}"
            line += f" ({row['floor_s']:.3f} s)"
            if "client_s" in row:
                line += f", {row['s'] / row['client_s']:.2f} to the client alone"
                line += f" ({row['client_s']:.3f} s, ratio {row['client_s'] / row['floor_s']:.2f})"
            print(line)
    return 0


def _measure_transfer(work: Path, url: str, token: str, mib: int, repeats: int) -> list[dict[str, Any]]:
    """Take the best of some turns."""
    best: dict[str, float] = {}
    for repeat in range(repeats):
        package = _package_of_noise(work / "package", mib)
        for name, seconds in _one_turn(package, f"bench/noise_{mib}_{repeat}", url, token).items():
            best[name] = min(best.get(name, seconds), seconds)
        shutil.rmtree(package)
    floor = {"mib": mib, "floor_s": best["floor"], "floor": "cp and sha256"}
    rows = [{"what": name, "s": best[name], "client_s": best[f"client {name}"], **floor} for name in _TRANSFERS]
    return [*rows, {"what": "cp, fsync and sha256", "s": best["synced floor"], **floor}]


def _one_turn(package: Path, model_id: str, url: str, token: str) -> dict[str, float]:
    """Push new bytes to a new repository and pull them into an empty cache; the same by the client alone; the floor."""
    from huggingface_hub import CommitOperationAdd, HfApi, constants, hf_hub_download, logging

    from eca_hub.hub.package import FILES, WEIGHTS_FILE
    from eca_hub.hub.pull import pull
    from eca_hub.hub.push import push_folder

    def copy_and_hash(*, is_synced: bool = False) -> None:
        shutil.copyfile(package / WEIGHTS_FILE, package / "copy")
        with (package / "copy").open("rb") as file:
            if is_synced:
                os.fsync(file.fileno())
            hashlib.file_digest(file, "sha256")

    # The client warns that it does not send an open file by Xet.
    logging.set_verbosity(ERROR)
    with noop_hub.running(package / WEIGHTS_FILE) as noop_url:

        def push_by_client(endpoint: str, token: str, repo: str, *, is_lfs: bool) -> None:
            api = HfApi(endpoint=endpoint, token=token)
            api.create_repo(repo)
            with (package / WEIGHTS_FILE).open("rb") as weights:
                files: dict[str, Any] = {name: str(package / name) for name in FILES}
                content = files | ({WEIGHTS_FILE: weights} if is_lfs else {})
                operations = [CommitOperationAdd(name, each) for name, each in content.items()]
                api.create_commit(repo, operations, commit_message="noise")

        steps: dict[str, Callable[[], object]] = {
            "floor": copy_and_hash,
            "synced floor": lambda: copy_and_hash(is_synced=True),
            "client push by Xet": lambda: push_by_client(noop_url, "none", f"{model_id}_xet", is_lfs=False),
            # Before the same bytes are there.
            "push by Xet": lambda: push_by_client(url, token, f"{model_id}_xet", is_lfs=False),
            "client push": lambda: push_by_client(noop_url, "none", model_id, is_lfs=True),
            "push": lambda: push_folder(package, model_id, endpoint=url, token=token),
            "pull": lambda: pull(model_id, endpoint=url),
            "client pull": lambda: hf_hub_download(f"{model_id}_noop", WEIGHTS_FILE, endpoint=noop_url),
        }
        seconds = {}
        for name, step in steps.items():
            if name == "push":
                _replace_last_byte(package / WEIGHTS_FILE)
            seconds[name] = _seconds(step)
    shutil.rmtree(constants.HF_HUB_CACHE)
    return seconds


def _measure_warm_load(work: Path, url: str, token: str, repeats: int) -> dict[str, Any]:
    """Load an ECA-ResNet-50 that the cache holds, and read the same weights with safetensors alone."""
    import safetensors.torch
    from huggingface_hub import hf_hub_download

    import eca_hub
    from eca_hub.hub.push import push_folder

    os.environ["HF_ENDPOINT"] = url
    labels = tuple(f"class {index}" for index in range(1000))
    config = eca_hub.ModelConfig("resnet50", "eca", labels=labels)
    package = eca_hub.save_pretrained(eca_hub.create_model("eca_resnet50"), work / "resnet50", config=config)
    published = push_folder(package, "bench/eca_resnet50", endpoint=url, token=token)

    def load_classifier() -> None:
        eca_hub.Classifier.from_pretrained(published.model_id, published.revision, endpoint=url)

    load_classifier()
    weights = Path(hf_hub_download(published.model_id, "model.safetensors", revision=published.revision, endpoint=url))

    def load_safetensors() -> None:
        safetensors.torch.load(weights.read_bytes())

    best = {"warm": float("inf"), "floor": float("inf")}
    for _ in range(max(repeats, 5)):
        best["floor"] = min(best["floor"], _seconds(load_safetensors))
        best["warm"] = min(best["warm"], _seconds(load_classifier))
    mib = weights.stat().st_size / 2**20
    return {
        "what": "warm from_pretrained",
        "mib": mib,
        "s": best["warm"],
        "floor_s": best["floor"],
        "floor": "safetensors",
    }


def _package_of_noise(folder: Path, mib: int) -> Path:
    """Write a package whose weights cannot be compressed or found elsewhere."""
    from eca_hub.hub.package import config_to_dict, to_json_text
    from eca_hub.models.config import ModelConfig

    folder.mkdir()
    (folder / "config.json").write_text(
        to_json_text(config_to_dict(ModelConfig("resnet18", "none", labels=("noise",))))
    )
    (folder / "README.md").write_text("---\nlibrary_name: eca-hub\n---\n\nNoise, to measure with.\n")
    num_bytes = mib * 2**20
    header = json.dumps({"noise": {"dtype": "U8", "shape": [num_bytes], "data_offsets": [0, num_bytes]}}).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for _ in range(mib):
            file.write(os.urandom(2**20))
        os.fsync(file.fileno())
    return folder


def _replace_last_byte(path: Path) -> None:
    """Make a file one that the hub does not have."""
    with path.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        [byte] = file.read(1)
        file.seek(-1, os.SEEK_END)
        file.write(bytes([byte ^ 1]))


def _seconds(step: Callable[[], object]) -> float:
    gc.collect()
    # What an earlier step has written is on the disk, so that no step waits for the bytes of another.
    os.sync()
    started_s = time.perf_counter()
    step()
    return time.perf_counter() - started_s


if __name__ == "__main__":
    run_program(main)
