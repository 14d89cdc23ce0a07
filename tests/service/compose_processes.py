"""docker-compose.yml without containers: its services as local processes, with their commands and healthchecks.

Addresses of 127.0.0.0/8 stand in for the containers' addresses, a DNS server for the network's, folders for volumes.
"""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import yaml

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "service" / "Dockerfile").read_text()
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, Any] = COMPOSE["services"]
BY_DEFAULT = [name for name, spec in SERVICES.items() if "profiles" not in spec]
"""The services that start without a profile."""

_PROGRAMS = {"eca-hub": [sys.executable, "-m", "eca_hub"], "python": [sys.executable]}
_VARIABLE = re.compile(r"\$\{(\w+)(:[-?])?([^}]*)\}")


def free_port(address: str = "127.0.0.1") -> int:
    """A port that was free a moment ago."""
    with socket.create_server((address, 0)) as listener:
        return int(listener.getsockname()[1])


def is_job(name: str) -> bool:
    """Whether a service ends when its work is done."""
    return str(SERVICES[name]["restart"]).startswith("on-failure")


def in_order(names: Sequence[str]) -> list[str]:
    """Services, each after those that it depends on."""
    order: list[str] = []
    waiting = list(names)
    while waiting:
        free = [name for name in waiting if set(SERVICES[name].get("depends_on", {})) <= set(order)]
        assert free, "services wait for each other"
        order += free
        waiting = [name for name in waiting if name not in free]
    return order


def container_port(name: str) -> str | None:
    """The port on which a service listens in its container."""
    spec = SERVICES[name]
    words = spec.get("command", [])
    if "--port" in words:
        return str(words[words.index("--port") + 1])
    return str(spec["ports"][0]).rsplit(":", 1)[1] if "ports" in spec else None


class NameServer:
    """Answers every A query for a known name with its addresses, as the resolver of a container network does."""

    def __init__(self, addresses: Mapping[str, Sequence[str]]) -> None:
        self._addresses = addresses
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._socket.getsockname()[1]}"
        threading.Thread(target=self._serve, name="name server", daemon=True).start()

    def close(self) -> None:
        """End the thread."""
        self._socket.sendto(b"", self._socket.getsockname())

    def _serve(self) -> None:
        with self._socket:
            while (received := self._socket.recvfrom(512))[0]:
                query, client = received
                self._socket.sendto(self._answer(query), client)

    def _answer(self, query: bytes) -> bytes:
        """RFC 1035, 4.1: header, question, and a record for each address whose name is that of the question."""
        end = query.index(b"\0", 12) + 5
        labels, place = [], 12
        while size := query[place]:
            labels.append(query[place + 1 : place + 1 + size].decode())
            place += 1 + size
        addresses = self._addresses.get(".".join(labels), ())
        flags = b"\x81\x80" if addresses else b"\x81\x83"
        header = query[:2] + flags + b"\0\x01" + len(addresses).to_bytes(2, "big") + bytes(4)
        record = b"\xc0\x0c\0\x01\0\x01\0\0\0\x01\0\x04"
        return header + query[12:end] + b"".join(record + socket.inet_aton(address) for address in addresses)


@dataclass
class Machine:
    """Stands in for the containers."""

    folder: Path
    """For volumes, secrets, /tmp and logs."""
    variables: Mapping[str, str]
    """What the operator would export or write into .env."""
    num_replicas: int = 1
    """Replicas of `service`, which stand behind addresses 127.0.0.2, 127.0.0.3 and so on."""
    running: dict[str, "subprocess.Popen[bytes]"] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.ports = {name: str(free_port()) for name in BY_DEFAULT if container_port(name)}
        self.replicas = {f"service-{index + 1}": f"127.0.0.{index + 2}" for index in range(self.num_replicas)}
        self._names = NameServer({"service": list(self.replicas.values())})
        for name in ("data", "cache", "runs", "tmp", "demo"):
            (self.folder / name).mkdir()
        [sources] = re.findall(r"(?m)^COPY (.*) /demo/$", DOCKERFILE)
        for source in sources.split():
            shutil.copy(ROOT / source, self.folder / "demo")
        script = ROOT / "service" / "deploy" / "make_secrets.sh"
        subprocess.run(["sh", str(script)], cwd=self.folder, check=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in self.running.values():
            process.kill()
            process.wait()
        self._names.close()

    def secret(self, name: str) -> str:
        """The first line of a secret."""
        return (self.folder / str(COMPOSE["secrets"][name]["file"])).read_text().split()[0]

    def url(self, process: str) -> str:
        """Where a process listens."""
        name = _service_of(process)
        return f"http://{self.replicas.get(process, '127.0.0.1')}:{self.ports[name]}"

    def log(self, process: str) -> str:
        """What a process has printed."""
        return (self.folder / f"{process}.log").read_text()

    def start(self, process: str) -> "subprocess.Popen[bytes]":
        """Start a service, or a replica of it."""
        spec = SERVICES[_service_of(process)]
        command = self._command(process, spec["command"])
        if command[0] == "nginx":
            self._render_templates(spec)
            # Started by root, nginx would give its workers a user that cannot enter the folder of the test.
            command += ["-g", "user root;"] if os.geteuid() == 0 else []
        with (self.folder / f"{process}.log").open("ab") as log:
            started = subprocess.Popen(command, env=self._environment(process, spec), cwd=ROOT, stdout=log, stderr=log)
        self.running[process] = started
        return started

    def wait_until_healthy(self, process: str) -> None:
        """Run the healthcheck until it succeeds."""
        kind, *words = SERVICES[_service_of(process)]["healthcheck"]["test"]
        assert kind == "CMD", "exec form: the image needs no shell"
        deadline = time.monotonic() + 180
        while subprocess.run(self._command(process, words), cwd=ROOT, check=False).returncode:
            assert self.running[process].poll() is None, self.log(process)
            assert time.monotonic() < deadline, self.log(process)
            # As an orchestrator does: polling without a pause would take the CPU from the service.
            time.sleep(0.2)

    def stop(self, process: str) -> int:
        """Send SIGTERM and return how the process ended."""
        ended = self.running.pop(process)
        ended.send_signal(signal.SIGTERM)
        return ended.wait(timeout=60)

    def _command(self, process: str, words: Sequence[str]) -> list[str]:
        return [*_PROGRAMS.get(words[0], [words[0]]), *(self._here(process, word) for word in words[1:])]

    def _environment(self, process: str, spec: dict[str, Any]) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("ECA_", "HF_"))}
        added = {name: self._here(process, value) for name, value in spec.get("environment", {}).items()}
        return kept | added | {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg"}

    def _here(self, process: str, text: str) -> str:
        """What a word of the file means on this machine."""
        address = self.replicas.get(process, "127.0.0.1")
        text = _VARIABLE.sub(lambda found: self.variables.get(found[1], found[3]), text)
        own_port = container_port(_service_of(process))
        for name, port in self.ports.items():
            text = text.replace(f"//{name}:{container_port(name)}", f"//127.0.0.1:{port}")
        if own_port is not None:
            port = self.ports[_service_of(process)]
            text = text.replace(f"//127.0.0.1:{own_port}/", f"//{address}:{port}/")
            text = re.sub(rf"^{own_port}$", port, text)
        text = re.sub(r"^0\.0\.0\.0$", address, text)
        return re.sub(r"^/(?:run/)?(secrets|data|cache|runs|tmp|demo)\b", rf"{self.folder}/\1", text)

    def _render_templates(self, spec: dict[str, Any]) -> None:
        """Do what the entry point of nginx's image does, and move its addresses and folders to this machine."""
        [templates] = [
            ROOT / source
            for source, target, _ in (volume.split(":") for volume in spec["volumes"])
            if target == "/etc/nginx/templates"
        ]
        output = self.folder / spec["environment"]["NGINX_ENVSUBST_OUTPUT_DIR"].strip("/")
        for template in templates.glob("*.template"):
            text = template.read_text().replace("${NGINX_LOCAL_RESOLVERS}", self._names.address)
            text = text.replace("listen 8000;", f"listen 127.0.0.1:{self.ports['balancer']};")
            text = text.replace("$replicas:8000", f"$replicas:{self.ports['service']}")
            text = text.replace(" /tmp/", f" {self.folder}/tmp/")
            (output / template.stem).write_text(text)


def _service_of(process: str) -> str:
    """`service-2` is a replica of `service`."""
    return process if process in SERVICES else process.rpartition("-")[0]
