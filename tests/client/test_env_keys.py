"""`verger env` and keys: where they are kept, and to whom they are sent."""

import io
import sys
from pathlib import Path

import pytest

from tests.client.conftest import Network
from tests.client.pinning import KEY, give_key, pin_of, variables
from tests.command_line import Verger
from tests.fake_instance import OTHER_ID, FakeInstance, fake_instance


def test_a_key_is_stored_once_it_is_accepted_and_then_printed(
    verger: Verger, instance: FakeInstance, tmp_path: Path
) -> None:
    instance.key = KEY
    without = verger("env")
    assert variables(without)["OPENAI_API_KEY"] == "unused"
    assert 'verger env "office-mini" --key-file FILE' in without.err
    wrong = give_key(verger, tmp_path, key="vg-wrong")
    assert wrong.status == 3
    assert pin_of("office-mini").key is None
    assert give_key(verger, tmp_path).status == 0
    with_key = variables(verger("env"))
    assert with_key["OPENAI_API_KEY"] == with_key["ANTHROPIC_API_KEY"] == KEY


def test_a_key_that_is_revoked_is_reported(
    verger: Verger, instance: FakeInstance, tmp_path: Path
) -> None:
    instance.key = KEY
    give_key(verger, tmp_path)
    instance.key = "vg-another"
    assert "refuses the stored key" in verger("env").err


def test_the_key_is_sent_only_after_the_identity_was_asked_for(
    verger: Verger, instance: FakeInstance, tmp_path: Path
) -> None:
    instance.key = KEY
    give_key(verger, tmp_path)
    assert instance.requests[0] == ("/v1/health", None)
    instance.requests.clear()
    verger("env")
    assert instance.requests[0] == ("/v1/health", None)
    assert instance.requests[-1] == ("/v1/models", f"Bearer {KEY}")


def test_the_key_of_one_server_is_not_sent_to_another(
    verger: Verger, instance: FakeInstance, network: Network, tmp_path: Path
) -> None:
    instance.key = KEY
    give_key(verger, tmp_path)
    with fake_instance() as other:
        other.id = OTHER_ID
        network.found.append(other.found("other-mini"))
        assert variables(verger("env", "other-mini"))["OPENAI_API_KEY"] == "unused"
        assert other.keys_seen == set()


def test_a_key_can_be_read_from_standard_input(
    verger: Verger, instance: FakeInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    instance.key = KEY
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{KEY}\n"))
    assert variables(verger("env", "--key", "-"))["OPENAI_API_KEY"] == KEY


@pytest.mark.parametrize("arguments", [["--key", KEY], ["--key", "-", "--key-file", "x"]])
def test_a_key_is_never_an_argument(
    verger: Verger, instance: FakeInstance, arguments: list[str]
) -> None:
    outcome = verger("env", *arguments)
    assert outcome.status == 2
    assert instance.requests == []
    assert KEY not in outcome.err


@pytest.mark.parametrize("text", ["", "two words", "k" * 513, "schlüssel"])
def test_what_is_no_key_is_refused_without_being_shown(
    verger: Verger, instance: FakeInstance, tmp_path: Path, text: str
) -> None:
    file = tmp_path / "key"
    file.write_text(text)
    outcome = verger("env", "--key-file", str(file))
    assert outcome.status == 2
    assert not text or text not in outcome.err
    assert instance.requests == []


def test_the_longest_key_is_taken(verger: Verger, instance: FakeInstance, tmp_path: Path) -> None:
    instance.key = "k" * 512
    assert give_key(verger, tmp_path, key=instance.key).status == 0
    assert pin_of("office-mini").key == instance.key
