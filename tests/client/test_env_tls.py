"""`verger env` with TLS: certificates that are pinned, trusted, renewed and lost."""

import ssl
from pathlib import Path

import pytest
from msgspec.structs import replace as replace_pin

from tests.client.conftest import Network
from tests.client.pinning import KEY, give_key, pin_of, variables
from tests.command_line import Verger
from tests.fake_instance import fake_instance, write_certificate
from verger import paths
from verger.cli import session
from verger.cli.pins import TRUSTED, load_pins


@pytest.mark.slow
def test_a_certificate_that_the_system_does_not_trust_is_pinned(
    verger: Verger, network: Network, tmp_path: Path
) -> None:
    with fake_instance(write_certificate(tmp_path / "one.pem")) as instance:
        instance.key = KEY
        given = give_key(verger, tmp_path, "office-mini", "--url", instance.url)
        assert "NODE_EXTRA_CA_CERTS" in given.err
        assert variables(given)["OPENAI_API_KEY"] == KEY
        assert (pin_of("office-mini").certificate or "").startswith("sha256:")
        assert variables(verger("env", "office-mini"))["OPENAI_API_KEY"] == KEY
    with fake_instance(write_certificate(tmp_path / "two.pem")) as impostor:
        outcome = verger("env", "office-mini", "--url", impostor.url)
        assert outcome.status == 3
        assert "its certificate is sha256:" in outcome.err
        assert impostor.keys_seen == set()


@pytest.mark.slow
def test_with_its_certificate_a_server_may_move(verger: Verger, tmp_path: Path) -> None:
    certificate = write_certificate(tmp_path / "one.pem")
    for _ in range(2):
        with fake_instance(certificate) as instance:
            outcome = verger("env", "office-mini", "--url", instance.url)
            assert variables(outcome)["ANTHROPIC_BASE_URL"] == instance.url
            assert pin_of("office-mini").port == instance.port


@pytest.mark.slow
def test_a_trusted_certificate_may_be_renewed_but_not_lose_its_trust(
    verger: Verger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def trusting(*trusted: Path) -> None:
        def context() -> ssl.SSLContext:
            made = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            for file in trusted:
                made.load_verify_locations(file)
            return made

        monkeypatch.setattr(session, "_trusting", context)

    files = [write_certificate(tmp_path / name) for name in ("one.pem", "two.pem", "three.pem")]
    trusting(*files[:2])
    for file in files[:2]:
        with fake_instance(file) as instance:
            _move_pin("office-mini", instance.port)
            assert verger("env", "office-mini", "--url", instance.url).status == 0
            assert pin_of("office-mini").certificate == TRUSTED
    with fake_instance(files[2]) as impostor:
        _move_pin("office-mini", impostor.port)
        outcome = verger("env", "office-mini", "--url", impostor.url)
        assert outcome.status == 3
        assert "does not trust its certificate any more" in outcome.err


def _move_pin(name: str, port: int) -> None:
    """The servers of a test cannot share a port, so the pin follows them."""
    pins = load_pins(paths.pins_file())
    if pin := pins.find(name):
        pins.put(replace_pin(pin, port=port))


def test_a_server_that_stops_speaking_tls_is_refused(verger: Verger, tmp_path: Path) -> None:
    with fake_instance(write_certificate(tmp_path / "one.pem")) as secure:
        verger("env", "office-mini", "--url", secure.url)
    with fake_instance() as plain:
        outcome = verger("env", "office-mini", "--url", plain.url)
        assert outcome.status == 3
        assert "does not speak TLS any more" in outcome.err
