"""docker-compose.yml and the Dockerfile, as files; test_compose_run.py runs them."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from eca_service import healthcheck
from eca_service.settings import Settings
from tests.service.compose_processes import BY_DEFAULT, COMPOSE, DOCKERFILE, ROOT, SERVICES, free_port, is_job

NGINX = (ROOT / "service" / "deploy" / "nginx" / "nginx.conf.template").read_text()
OURS = [name for name, spec in SERVICES.items() if "build" in spec]


def test_no_service_depends_on_a_job() -> None:
    for spec in SERVICES.values():
        assert not any(map(is_job, spec.get("depends_on", {}))), "podman does not start what depends on it"


@pytest.mark.parametrize("name", SERVICES)
def test_every_container_is_hardened(name: str) -> None:
    spec = SERVICES[name]
    assert spec["read_only"] is True
    assert spec["cap_drop"] == ["ALL"]
    assert spec["security_opt"] == ["no-new-privileges:true"]
    assert [mount.split(":")[0] for mount in spec["tmpfs"]] == ["/tmp"], "a read-only root needs one writable folder"
    assert not spec["user"].startswith(("0", "root"))
    assert set(spec["deploy"]["resources"]["limits"]) == {"cpus", "memory"}
    assert spec["pids_limit"] > 0
    assert all(port.startswith("127.0.0.1:") for port in spec.get("ports", ())), "published on loopback only"
    assert "healthcheck" in spec or is_job(name) or spec["restart"] == "no"


@pytest.mark.parametrize("name", OURS)
def test_our_images_come_from_one_dockerfile(name: str) -> None:
    build = SERVICES[name]["build"]
    assert build["dockerfile"] == "service/Dockerfile"
    assert build["target"] in re.findall(r"FROM \S+ AS (\S+)", DOCKERFILE)


def test_keys_are_secrets_in_files_and_not_in_the_environment() -> None:
    for spec in SERVICES.values():
        assert set(spec.get("secrets", ())) <= set(COMPOSE["secrets"])
        for name, value in spec.get("environment", {}).items():
            if re.search("KEY|TOKEN|PASSWORD", name):
                assert value.removeprefix("/run/secrets/") in spec["secrets"]
    assert all(secret["file"].startswith("./secrets/") for secret in COMPOSE["secrets"].values())
    assert "secrets/" in (ROOT / ".gitignore").read_text().split()


def make_secrets(folder: Path) -> dict[str, str]:
    """The text of each secret."""
    subprocess.run(["sh", str(ROOT / "service" / "deploy" / "make_secrets.sh")], cwd=folder, check=True)
    return {path.name: path.read_text() for path in (folder / "secrets").iterdir()}


def test_secrets_are_made_once(tmp_path: Path) -> None:
    made = make_secrets(tmp_path)
    assert set(made) == set(COMPOSE["secrets"])
    assert all(len(line) == 48 for text in made.values() for line in text.split())
    assert made["metrics_key"].strip() in made["api_keys"].split(), "Prometheus' key is one of the service's"
    assert len(set(" ".join(made.values()).split())) == 4
    assert (tmp_path / "secrets").stat().st_mode & 0o777 == 0o700
    assert make_secrets(tmp_path) == made
    (tmp_path / "secrets" / "metrics_key").unlink()
    again = make_secrets(tmp_path)
    assert again["api_keys"] == made["api_keys"] + again["metrics_key"], "the new key is one of the service's too"


def test_the_key_of_prometheus_is_a_line_of_its_own_behind_keys_without_a_last_newline(tmp_path: Path) -> None:
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets" / "api_keys").write_text("a-key-of-the-operator")
    made = make_secrets(tmp_path)
    assert made["api_keys"] == "a-key-of-the-operator\n" + made["metrics_key"]


def test_only_profiles_add_services_beyond_the_hub_and_the_replicas() -> None:
    assert BY_DEFAULT == ["hub", "seed", "service", "balancer"]
    assert {profile for spec in SERVICES.values() for profile in spec.get("profiles", ())} == {
        "gpu",
        "monitoring",
        "train",
    }


def test_replicas_can_be_added_because_they_publish_no_port_and_share_a_name() -> None:
    assert "ports" not in SERVICES["service"]
    assert "container_name" not in SERVICES["service"]
    assert SERVICES["service-gpu"]["networks"]["default"]["aliases"] == ["service"]
    [device] = SERVICES["service-gpu"]["deploy"]["resources"]["reservations"]["devices"]
    assert device["capabilities"] == ["gpu"]


def test_the_grace_period_is_longer_than_the_drain() -> None:
    spec = SERVICES["service"]
    settings = settings_of(spec)
    assert int(spec["stop_grace_period"].removesuffix("s")) > settings.drain_delay_s + settings.drain_timeout_s


def settings_of(spec: dict[str, Any]) -> Settings:
    """The settings that the environment of a service results in."""
    values = {name[4:].lower(): value for name, value in spec["environment"].items() if name.startswith("ECA_")}
    values = {name: re.sub(r"\$\{\w+:-(\w+)\}", r"\1", value) for name, value in values.items() if value}
    return Settings(**values | {"model": (values["model"],)})


def directive(name: str) -> str:
    """The value of a directive that nginx's configuration has once."""
    [value] = re.findall(rf"(?m)^\s*{name} (.*);$", NGINX)
    return str(value)


def test_the_balancers_limits_are_those_of_the_service() -> None:
    settings = settings_of(SERVICES["service"])
    # The service's own error says more, so nginx's limit is the next one.
    assert settings.max_request_mib < int(directive("client_max_body_size").removesuffix("m")) <= 40
    assert float(directive("client_header_timeout").removesuffix("s")) == settings.header_timeout_s
    assert float(directive("client_body_timeout").removesuffix("s")) == settings.body_timeout_s
    assert float(directive("send_timeout").removesuffix("s")) == settings.write_timeout_s
    assert float(directive("proxy_read_timeout").removesuffix("s")) > settings.deadline_ms / 1000
    assert directive("proxy_request_buffering") == "on"
    assert "non_idempotent" in directive("proxy_next_upstream")


def test_nginx_asks_only_the_name_server_that_knows_the_replicas() -> None:
    [script] = [
        (ROOT / source, target)
        for source, target, _ in (volume.split(":") for volume in SERVICES["balancer"]["volumes"])
        if target.startswith("/docker-entrypoint.d/")
    ]
    source, target = script
    # The entry point sources executable files in the order of their names: 15 finds the name servers, 20 uses them.
    assert re.fullmatch(r"/docker-entrypoint\.d/1[6-9].*\.envsh", target)
    assert os.access(source, os.X_OK)
    for found in ("10.89.0.1 10.0.0.53", "127.0.0.11", "[fd00::1] 10.0.0.53"):
        done = subprocess.run(
            ["sh", "-euc", '. "$0"; exec printenv NGINX_LOCAL_RESOLVERS', str(source)],
            env={**os.environ, "NGINX_LOCAL_RESOLVERS": found},
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.split() == found.split()[:1]


def test_the_replicas_use_as_many_threads_as_they_may_use_cores() -> None:
    for name in ("ECA_NUM_ENGINES", "ECA_NUM_DECODERS"):
        assert SERVICES["service"]["environment"][name] == SERVICES["service"]["deploy"]["resources"]["limits"]["cpus"]


def test_training_uses_no_more_threads_than_it_may_use_cores_and_has_shared_memory_for_its_workers() -> None:
    for name in ("seed", "train"):
        spec = SERVICES[name]
        assert int(spec["environment"]["OMP_NUM_THREADS"]) <= int(spec["deploy"]["resources"]["limits"]["cpus"])
    assert SERVICES["train"]["shm_size"] == "1g"


def test_the_containers_read_what_a_private_checkout_mounts_and_copies(tmp_path: Path) -> None:
    deploy = tmp_path / "service" / "deploy"
    shutil.copytree(ROOT / "service" / "deploy", deploy)
    for path in deploy.rglob("*"):
        path.chmod(path.stat().st_mode & 0o700)
    subprocess.run(["sh", "service/deploy/make_secrets.sh"], cwd=tmp_path, check=True)
    for spec in SERVICES.values():
        for source in (volume.split(":")[0] for volume in spec.get("volumes", ())):
            if source.startswith("./"):
                for path in (tmp_path / source, *(tmp_path / source).rglob("*")):
                    mode = path.stat().st_mode & 0o777
                    is_executable = path.is_dir() or path.suffix == ".envsh"
                    assert mode & 0o555 == (0o555 if is_executable else 0o444), path
    assert (deploy / "publish_demo.py").stat().st_mode & 0o077 == 0
    assert 'RUN ["chmod", "-R", "a+rX", "/demo"]' in STAGES["train"]


def test_what_is_mounted_from_the_repository_is_there() -> None:
    for spec in SERVICES.values():
        for volume in spec.get("volumes", ()):
            source = volume.split(":")[0]
            assert (ROOT / source).exists() if source.startswith("./") else source in COMPOSE["volumes"]


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
