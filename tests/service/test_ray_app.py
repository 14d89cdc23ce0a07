"""The service on Ray Serve: the contract of the API, and two nodes of which one is killed under load.

The nodes are processes of this machine (`ray.cluster_utils.Cluster`), with a replica each.
"""

import os
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import httpx2
import pytest
import yaml

from eca_hub import EcaHubError
from tests.ray_cluster import add_node
from tests.service.api.contract import EXCHANGES, KEY, MODEL, SETTINGS, Exchange, flood, hold
from tests.service.fakes import png
from tests.service.server_process import save_tiny_package

CALLBACK = "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"
CONFIG = Path(__file__).parents[2] / "service" / "deploy" / "ray" / "eca-hub.yaml"
NUM_CLIENTS = 8

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),
    # Imported by the tests themselves: the import of Ray takes seconds, and the default run runs none of them.
    pytest.mark.skipif(find_spec("ray") is None, reason="pip install 'eca-hub[ray]'"),
]


class TwoNodes:
    """A cluster with a head that has no replica, and nodes that have one each."""

    def __init__(self, package: Path) -> None:
        import ray
        from ray import serve
        from ray.cluster_utils import Cluster

        from eca_service import ray_proxy
        from eca_service.ray_app import NAME, deployment_for, read_settings

        # The head's processes inherit it, as they do from the shell of `ray start`.
        os.environ[CALLBACK] = f"{ray_proxy.__name__}:{ray_proxy.middlewares.__name__}"
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self._name = NAME
        self.cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
        self.nodes = [add_node(self.cluster) for _ in range(2)]
        ray.init(address=self.cluster.address, log_to_driver=False)
        serve.start(proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": port})
        keys = package / "keys"
        keys.write_text("sesame")
        settings = read_settings({"model": f"{MODEL}={package}", "api_keys_file": str(keys), **SETTINGS})
        options = {"num_replicas": 2, "max_replicas_per_node": 1, "health_check_period_s": 1}
        deployment = deployment_for(settings).options(ray_actor_options={"num_cpus": 1}, **options)
        serve.run(deployment.bind(), name=NAME)

    def num_running(self) -> int:
        """Replicas that run; each has a node of its own."""
        from ray import serve

        [deployment] = serve.status().applications[self._name].deployments.values()
        return int({str(state): number for state, number in deployment.replica_states.items()}.get("RUNNING", 0))

    def close(self) -> None:
        import ray
        from ray import serve

        serve.shutdown()
        ray.shutdown()
        self.cluster.shutdown()
        del os.environ[CALLBACK]


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TwoNodes]:
    nodes = TwoNodes(save_tiny_package(tmp_path_factory.mktemp("package")))
    yield nodes
    nodes.close()


@pytest.fixture
def client(nodes: TwoNodes) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=nodes.url, timeout=60) as client:
        yield client


@pytest.mark.timeout(600)
@pytest.mark.parametrize("exchange", EXCHANGES, ids=lambda exchange: exchange.about)
def test_the_contract_holds(client: httpx2.Client, exchange: Exchange) -> None:
    hold(client, exchange)


def test_a_flood_is_refused_with_429(client: httpx2.Client) -> None:
    assert set(flood(client)) == {200, 429}


class Load:
    """Clients that classify one image after the other."""

    def __init__(self, url: str) -> None:
        self.statuses: Counter[str] = Counter()
        self.is_over = threading.Event()
        self._url = url
        self._threads = [threading.Thread(target=self._send) for _ in range(NUM_CLIENTS)]
        for thread in self._threads:
            thread.start()

    def wait_for(self, num_more: int, within_s: float = 120) -> None:
        """Wait until so many more requests have succeeded."""
        enough, deadline_s = self.statuses["200"] + num_more, time.monotonic() + within_s
        while self.statuses["200"] < enough:
            assert time.monotonic() < deadline_s, self.statuses
            time.sleep(0.05)

    def end(self) -> None:
        self.is_over.set()
        for thread in self._threads:
            thread.join()

    def _send(self) -> None:
        with httpx2.Client(base_url=self._url, timeout=60) as client:
            while not self.is_over.is_set():
                try:
                    status = str(client.post("/v1/classify", content=png(), headers=KEY).status_code)
                except httpx2.TransportError as error:
                    status = type(error).__name__
                self.statuses[status] += 1


@pytest.mark.timeout(600)
def test_requests_are_spread_and_a_killed_node_is_survived(nodes: TwoNodes, client: httpx2.Client) -> None:
    def received() -> set[str]:
        """Process ids of the replicas that respond; /metrics shows the one that the proxy chooses."""
        texts = [client.get("/metrics", headers=KEY).text for _ in range(30)]
        return {
            line
            for text in texts
            for line in text.splitlines()
            if line.startswith("process_start_time_seconds") and "eca_requests_total" in text
        }

    load = Load(nodes.url)
    try:
        load.wait_for(50)
        assert nodes.num_running() == 2
        assert len(received()) == 2, "both replicas get requests"
        nodes.cluster.remove_node(nodes.nodes.pop(), allow_graceful=False)
        load.wait_for(200)
        print(f"responses around the loss of a node: {dict(load.statuses)}")  # noqa: T201
        assert set(load.statuses) <= {"200", "429"}, "what the killed replica had was sent to the other one"
        nodes.nodes.append(add_node(nodes.cluster))
        deadline_s = time.monotonic() + 120
        while nodes.num_running() < 2 or len(received()) < 2:
            assert time.monotonic() < deadline_s, "the replica came back on the new node"
            time.sleep(0.5)
        before = load.statuses.copy()
        load.wait_for(100)
        assert set(load.statuses - before) <= {"200", "429"}, "nothing is lost any more"
    finally:
        load.end()


def test_the_shipped_configuration_is_one_that_serve_accepts() -> None:
    from ray.serve.schema import ServeDeploySchema

    from eca_service.ray_app import NAME, build, read_settings

    config = yaml.safe_load(CONFIG.read_text())
    [application] = ServeDeploySchema.model_validate(config).applications
    settings = read_settings(application.args)
    assert application.import_path == f"{build.__module__}:{build.__name__}"
    [deployment] = config["applications"][0]["deployments"]
    assert deployment["name"] == NAME
    assert deployment["max_ongoing_requests"] == 2 * settings.max_inflight_images
    assert deployment["max_queued_requests"] == settings.max_inflight_images
    assert config["http_options"]["request_timeout_s"] > settings.deadline_ms / 1000


def test_a_setting_of_the_http_server_is_refused() -> None:
    from eca_service.ray_app import read_settings

    assert read_settings({"model": "acme/a,acme/b"}).model == ("acme/a", "acme/b")
    with pytest.raises(EcaHubError, match="port has no effect on Ray Serve"):
        read_settings({"model": "acme/a", "port": 80})


def test_a_service_without_keys_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from eca_service.ray_app import build

    monkeypatch.delenv("ECA_API_KEYS", raising=False)
    with pytest.raises(EcaHubError, match="without an API key"):
        build({"model": "acme/a"})
