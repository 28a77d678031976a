"""HTTP to one server: bounds, no redirects, no proxies, and one certificate only."""

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fake_instance import FakeInstance, fake_instance, write_certificate
from verger.cli import session
from verger.cli.session import MAX_BODY_BYTES, Session, greet, observe_certificate, within
from verger.connect.address import Address
from verger.errors import Unreachable


@pytest.fixture
def instance() -> Iterator[FakeInstance]:
    with fake_instance() as instance:
        yield instance


def address(instance: FakeInstance) -> Address:
    return Address("127.0.0.1", instance.port, instance.is_tls)


def test_an_answer_may_be_long_but_not_longer(instance: FakeInstance) -> None:
    plain = Session(address(instance), None)
    instance.answers["/long"] = (200, {}, b"x" * MAX_BODY_BYTES)
    assert len(plain.get("/long").body) == MAX_BODY_BYTES
    instance.answers["/long"] = (200, {}, b"x" * (MAX_BODY_BYTES + 1))
    with pytest.raises(Unreachable, match="longer than"):
        plain.get("/long")


def test_a_redirect_is_not_followed(instance: FakeInstance) -> None:
    with fake_instance() as other:
        instance.answers["/v1/models"] = (307, {"location": f"{other.url}/v1/models"}, b"")
        with pytest.raises(Unreachable, match="does not answer as a Verger"):
            Session(address(instance), None).models("vg-key")
        assert other.requests == []


def test_no_proxy_of_the_environment_is_asked(
    instance: FakeInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    with fake_instance() as proxy:
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, proxy.url)
        assert greet(address(instance)).is_ready
        assert proxy.requests == []


def test_nothing_listening_is_said_in_one_sentence() -> None:
    with fake_instance() as gone:
        pass
    with pytest.raises(Unreachable, match="cannot reach http://127.0.0.1:") as refused:
        greet(address(gone))
    assert "\n" not in str(refused.value)


@pytest.mark.slow
@pytest.mark.parametrize("is_tls", [False, True])
def test_a_server_that_accepts_and_says_nothing_is_given_up(
    is_tls: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "STEP_S", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(Unreachable):
        greet(Address("127.0.0.1", silent.getsockname()[1], is_tls))


def test_what_takes_longer_than_the_whole_limit_is_left_behind() -> None:
    let_go = threading.Event()
    assert within(0.05, lambda: let_go.wait(30)) is None
    let_go.set()
    assert within(5, lambda: 42) == 42


def test_a_session_accepts_the_certificate_that_was_seen_and_no_other(tmp_path: Path) -> None:
    with (
        fake_instance(write_certificate(tmp_path / "one.pem")) as one,
        fake_instance(write_certificate(tmp_path / "two.pem")) as two,
    ):
        seen = observe_certificate(address(one))
        assert not seen.is_trusted
        assert Session(address(one), seen).models(None)
        with pytest.raises(Unreachable, match="CERTIFICATE_VERIFY_FAILED"):
            Session(address(two), seen).models("vg-key")
        assert two.requests == []


@pytest.mark.slow
def test_a_certificate_of_the_systems_trust_store_is_trusted(tmp_path: Path) -> None:
    """OpenSSL's variable stands for the store on Linux; a process reads it once."""
    if sys.platform != "linux":
        pytest.skip("the trust store of this system cannot be given a certificate by a test")
    file = write_certificate(tmp_path / "one.pem")
    with fake_instance(file) as instance:
        program = (
            "from verger.cli.session import observe_certificate\n"
            "from verger.connect.address import Address\n"
            f"print(observe_certificate(Address('127.0.0.1', {instance.port}, True)).is_trusted)"
        )
        environment = {**os.environ, "SSL_CERT_FILE": str(file)}
        command = [sys.executable, "-c", program]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "True\n"
