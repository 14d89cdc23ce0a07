"""docker-compose.yml without containers: each service's command, environment and healthcheck as local processes."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest
import yaml

from eca_service import healthcheck
from tests.service.fakes import png

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "service" / "Dockerfile").read_text()
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
ENV = {"HUB_TOKEN": "hub-token-of-the-test", "ECA_API_KEYS": "key-of-the-test", "ECA_DEMO_EPOCHS": "1"}


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@dataclass
class Machine:
    """Stands in for the containers: one address for all, folders for volumes."""

    folder: Path
    ports: dict[str, int]

    def here(self, text: str) -> str:
        """What a word of the file means on this machine."""

        def fill(found: re.Match[str]) -> str:
            name, operator, rest = found[1], found[2], found[3]
            if operator == ":?":
                assert name in ENV, f"{name} must be set"
            return ENV.get(name, rest)

        text = re.sub(r"\$\{(\w+)(:[-?])?([^}]*)\}", fill, text)
        for service, spec in COMPOSE["services"].items():
            for mapping in spec.get("ports", ()):
                assert mapping.startswith("127.0.0.1:"), "ports are published on loopback only"
                inside = mapping.rsplit(":", 1)[1]
                text = re.sub(rf"//({service}|127\.0\.0\.1):{inside}", f"//127.0.0.1:{self.ports[service]}", text)
                text = re.sub(rf"^{inside}$", str(self.ports[service]), text)
        text = re.sub(r"^0\.0\.0\.0$", "127.0.0.1", text)
        return re.sub(r"^/(data|cache|tmp|demo)\b", lambda found: f"{self.folder}/{found[1]}", text)

    def command(self, words: list[str]) -> list[str]:
        programs = {"eca-hub": [sys.executable, "-m", "eca_hub"], "python": [sys.executable]}
        return [*programs[words[0]], *map(self.here, words[1:])]

    def environment(self, spec: dict[str, Any]) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("ECA_", "HF_"))}
        added = {name: self.here(value) for name, value in spec.get("environment", {}).items()}
        return kept | added | {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg"}

    def start(self, service: str) -> "subprocess.Popen[bytes]":
        spec = COMPOSE["services"][service]
        with (self.folder / f"{service}.log").open("wb") as log:
            return subprocess.Popen(
                self.command(spec["command"]), env=self.environment(spec), cwd=ROOT, stdout=log, stderr=log
            )

    def wait_until_healthy(self, service: str, process: "subprocess.Popen[bytes]") -> None:
        kind, *words = COMPOSE["services"][service]["healthcheck"]["test"]
        assert kind == "CMD", "exec form: the image needs no shell"
        deadline = time.monotonic() + 60
        while subprocess.run(self.command(words), cwd=ROOT, check=False).returncode:
            assert process.poll() is None, (self.folder / f"{service}.log").read_text()
            assert time.monotonic() < deadline
            # As an orchestrator does: polling without a pause would take the CPU from the service.
            time.sleep(0.2)


def in_order() -> list[str]:
    """The services, each after those that it depends on."""
    order: list[str] = []
    waiting = dict(COMPOSE["services"])
    while waiting:
        free = [name for name, spec in waiting.items() if set(spec.get("depends_on", {})) <= set(order)]
        assert free, "services wait for each other"
        order += free
        for name in free:
            del waiting[name]
    return order


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    for name in ("data", "cache", "tmp", "demo"):
        (tmp_path / name).mkdir()
    [sources] = re.findall(r"(?m)^COPY (.*) /demo/$", DOCKERFILE)
    for source in sources.split():
        shutil.copy(ROOT / source, tmp_path / "demo")
    return Machine(tmp_path, {name: free_port() for name, spec in COMPOSE["services"].items() if "ports" in spec})


def is_job(name: str) -> bool:
    """Whether a service ends when its work is done."""
    return str(COMPOSE["services"][name]["restart"]).startswith("on-failure")


@pytest.mark.slow
def test_the_services_start_in_order_respond_and_stop(machine: Machine) -> None:
    running: dict[str, subprocess.Popen[bytes]] = {}
    dependencies = [spec.get("depends_on", {}) for spec in COMPOSE["services"].values()]
    needed = {name for one in dependencies for name, how in one.items() if how["condition"] == "service_healthy"}
    try:
        for name in in_order():
            running[name] = machine.start(name)
            if name in needed:
                machine.wait_until_healthy(name, running[name])
        for name in filter(is_job, COMPOSE["services"]):
            assert running.pop(name).wait(timeout=120) == 0, (machine.folder / f"{name}.log").read_text()
        for name, process in running.items():
            machine.wait_until_healthy(name, process)
        url = f"http://127.0.0.1:{machine.ports['service']}"
        refused = httpx2.post(f"{url}/v1/classify", content=png())
        assert refused.status_code == 401
        headers = {"authorization": f"Bearer {ENV['ECA_API_KEYS']}"}
        response = httpx2.post(f"{url}/v1/classify", content=png(), headers=headers)
        assert response.status_code == 200, response.text
        assert response.json()["model"] == COMPOSE["services"]["service"]["environment"]["ECA_MODEL"]
        for name in reversed(list(running)):
            process = running.pop(name)
            process.send_signal(signal.SIGTERM)
            assert process.wait(timeout=20) in (0, -signal.SIGTERM), (machine.folder / f"{name}.log").read_text()
    finally:
        for process in running.values():
            process.kill()
            process.wait()


def test_no_service_depends_on_a_job() -> None:
    for spec in COMPOSE["services"].values():
        assert not any(map(is_job, spec.get("depends_on", {}))), "podman does not start what depends on it"


@pytest.mark.parametrize("name", COMPOSE["services"])
def test_every_container_is_hardened(name: str) -> None:
    spec = COMPOSE["services"][name]
    assert spec["read_only"] is True
    assert spec["cap_drop"] == ["ALL"]
    assert spec["security_opt"] == ["no-new-privileges:true"]
    assert "/tmp" in spec["tmpfs"], "a read-only machine needs a place for temporary files"
    assert spec["build"]["target"] in re.findall(r"FROM \S+ AS (\S+)", DOCKERFILE)


def test_the_grace_period_is_longer_than_the_drain() -> None:
    spec = COMPOSE["services"]["service"]
    assert int(spec["stop_grace_period"].removesuffix("s")) > float(spec["environment"]["ECA_DRAIN_TIMEOUT_S"])


STAGES = {part.split(" AS ")[1].split()[0]: part for part in re.split(r"(?m)^FROM ", DOCKERFILE)[1:]}


def ancestry(stage: str) -> str:
    """What a stage is made of, from the base on."""
    base = STAGES[stage].split()[0]
    return (ancestry(base) if base in STAGES else "") + STAGES[stage]


def test_the_images_run_without_root_and_without_a_shell() -> None:
    assert list(STAGES)[-1] == "serve", "the last one is built unless another is named"
    for stage in ("serve", "train"):
        assert re.findall(r"(?m)^USER (\S+)", ancestry(stage))[-1] == "10001:10001"
    for line in re.findall(r"(?m)^(?:RUN|CMD|ENTRYPOINT) (.*)$", DOCKERFILE):
        assert json.loads(line), "exec form: signals reach Python"
    for stage in STAGES:
        for file in re.findall(r"(?m)^COPY (?!--from)(.*) \S+$", STAGES[stage]):
            assert all((ROOT / name).exists() for name in file.split())


def test_only_the_image_that_trains_has_lightning(tmp_path: Path) -> None:
    assert "/train.txt" not in ancestry("serve")
    [words] = [json.loads(line) for line in re.findall(r"(?m)^RUN (.*)$", STAGES["requirements"])]
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    script = words[2].replace("f'/{extra}.txt'", "f'{extra}.txt'")
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=True)
    serve, train = ((tmp_path / f"{extra}.txt").read_text() for extra in ("serve", "train"))
    assert "uvicorn" in serve
    assert "torch>=" in serve
    assert "lightning" in train
    for name in ("lightning", "torchmetrics", "matplotlib"):
        assert name not in serve


@pytest.mark.parametrize(("device", "index"), [("cpu", "whl/cpu"), ("cu130", "whl/cu130")])
def test_the_device_chooses_where_torch_comes_from(device: str, index: str) -> None:
    arguments = dict(re.findall(r"(?m)^ARG (\w+)=(\S+)$", STAGES["libraries"])) | {"DEVICE": device}
    url = arguments["TORCH_INDEX"].replace("${DEVICE}", arguments["DEVICE"])
    assert url == f"https://download.pytorch.org/{index}"
    assert re.search(r"pip install --index-url \$TORCH_INDEX 'torch>=", STAGES["libraries"])


def test_torch_is_not_fetched_again_when_only_our_code_changes() -> None:
    assert not re.search(r"COPY (?!--from=requirements)", STAGES["libraries"])


def test_the_builder_gets_only_the_files_that_are_copied() -> None:
    ignored, *kept = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if not line.startswith("#")]
    assert ignored == "*"
    wanted = re.findall(r"(?m)^COPY (?!--from)(.*) \S+$", "".join(STAGES.values()))
    assert {line[1:] for line in kept if line.startswith("!")} == set(" ".join(wanted).split())


def test_the_healthcheck_distinguishes_healthy_from_unhealthy() -> None:
    assert "eca_service.healthcheck" in STAGES["serve"]
    assert healthcheck.main([]) == 2
    assert healthcheck.main(["file:///etc/passwd"]) == 2
    assert healthcheck.main([f"http://127.0.0.1:{free_port()}/readyz"]) == 1
