"""The contract of the API on `eca-hub serve`; test_ray_app.py holds Ray Serve to the same."""

from collections.abc import Iterator

import pytest

from tests.service.api.contract import EXCHANGES, MODEL, SETTINGS, Exchange, flood, hold
from tests.service.server_process import Served, save_tiny_package, served

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    package = save_tiny_package(tmp_path_factory.mktemp("package"))
    options = [word for name, value in SETTINGS.items() for word in (f"--{name}", str(value).lower())]
    with served("--model", f"{MODEL}={package}", *options, ECA_API_KEYS="sesame") as service:
        service.wait_until_ready()
        yield service


@pytest.mark.parametrize("exchange", EXCHANGES, ids=lambda exchange: exchange.about)
def test_the_contract_holds(service: Served, exchange: Exchange) -> None:
    hold(service.client, exchange)


def test_a_flood_is_refused_with_429(service: Served) -> None:
    statuses = flood(service.client)
    assert set(statuses) == {200, 429}
