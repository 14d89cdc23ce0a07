"""Which hosts are this machine."""

import pytest

from eca_hub.loopback import is_loopback


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "localhost"])
def test_loopback_addresses_and_localhost_are_this_machine(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["", "0.0.0.0", "::", "192.168.1.2", "localhost.example.com", "127.0.0.1.example.com"])
def test_other_hosts_are_not(host: str) -> None:
    assert not is_loopback(host)
