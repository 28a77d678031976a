"""The fixtures of conftest.py do what every other test relies on."""

import socket

import pytest

from verger import paths


@pytest.mark.parametrize("address", ["192.0.2.1", "2001:db8::1", "example.org"])
def test_no_test_reaches_beyond_this_machine(address: str) -> None:
    with pytest.raises(PermissionError, match="only loopback"):
        socket.create_connection((address, 80), timeout=1)


def test_loopback_is_open() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        with socket.create_connection(server.getsockname(), timeout=1):
            pass


def test_the_state_folder_is_a_temporary_one() -> None:
    assert not paths.home().exists()
