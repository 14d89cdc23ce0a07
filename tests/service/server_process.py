"""`eca-hub serve` as a process."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import torch

import eca_hub


def save_tiny_package(folder: Path, *, seed: int = 0) -> Path:
    """A package whose network was never trained: its results are arbitrary, but reproducible."""
    torch.manual_seed(seed)
    labels = tuple(f"digit {digit}" for digit in range(10))
    config = eca_hub.ModelConfig("resnet20", "eca", labels=labels, image=eca_hub.ImageConfig(32, 32, crop=1.0))
    model = eca_hub.create_model("eca_resnet20", num_classes=10)
    return eca_hub.save_pretrained(model, folder, config=config)


class Served:
    """A running process and a client to it."""

    def __init__(self, process: "subprocess.Popen[str]", url: str) -> None:
        self.process = process
        self.url = url
        self.port = int(url.rsplit(":", 1)[1])
        self.client = httpx2.Client(base_url=url, timeout=30, verify=False)

    def wait_until_ready(self, within_s: float = 300) -> None:
        """Poll as an orchestrator does."""
        deadline = time.monotonic() + within_s
        while self.client.get("/readyz").status_code != 200:
            assert self.process.poll() is None, "the process ended"
            assert time.monotonic() < deadline
            time.sleep(0.05)

    def wait_for_log(self, words: str) -> None:
        """Read the log up to the line that has these words."""
        assert self.process.stderr is not None
        assert any(words in line for line in self.process.stderr), f"the log ended without {words!r}"

    def peak_mib(self) -> float:
        """The most memory that the process has held since `forget_peak`, or since its start."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) / 1024

    def forget_peak(self) -> float:
        """Begin to measure anew, from what the process holds now."""
        Path(f"/proc/{self.process.pid}/clear_refs").write_text("5")
        return self.peak_mib()

    def cpu_s(self) -> float:
        """Processor time of all its threads."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Send a signal and return how the process ended."""
        self.process.send_signal(number)
        return self.process.wait(timeout=60)


def start(*argv: str, cwd: Path | None = None, **environment: str) -> "subprocess.Popen[str]":
    """Start `eca-hub serve`."""
    command = [sys.executable, "-m", "eca_hub", "serve", *argv]
    # In fp32 the responses equal the library's.
    exact = {"ECA_PRECISION": "fp32"}
    env = {key: value for key, value in os.environ.items() if not key.startswith("ECA_")} | exact | environment
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env, cwd=cwd)


@contextmanager
def served(*argv: str, cwd: Path | None = None, **environment: str) -> Iterator[Served]:
    """The process, from its line on standard output to its end."""
    process = start("--port", "0", *argv, cwd=cwd, **environment)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("serving on http://127.0.0.1:"), (line, process.communicate(timeout=60))
        running = Served(process, line.removeprefix("serving on ").strip())
        with running.client:
            yield running
    finally:
        process.kill()
        process.communicate(timeout=60)


def responses_of(client: Any, contents: list[bytes]) -> list[Any]:
    """Post images one after the other."""
    return [client.post("/v1/classify", content=content).json() for content in contents]
