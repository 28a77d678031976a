"""The fixtures of conftest.py do what every other test relies on."""

import socket

import pytest

from verger import paths


@pytest.mark.parametrize("address", ["192.0.2.1", "2001:db8::1", "example.org"])
def test_no_test_reaches_beyond_this_machine(address: str) -> None:
    with pytest.raises(PermissionError, match="only loopback"):
        socket.create_connection((address, 80), timeout=1)


def test_no_test_multicasts_not_even_on_loopback() -> None:
    """What speaks multicast DNS does so in a process of its own, as those in tests/lan."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as speaking:
        speaking.bind(("127.0.0.1", 0))
        with pytest.raises(PermissionError, match="only loopback"):
            speaking.sendto(b"", ("224.0.0.251", 5353))


def test_loopback_is_open() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        with socket.create_connection(server.getsockname(), timeout=1):
            pass


def test_the_state_folder_is_a_temporary_one() -> None:
    assert not paths.home().exists()
