"""`verger keys`, and what `verger serve` says of keys before it starts."""

import json
import signal
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from tests.command_line import Outcome, Verger
from tests.keys import make_key, revoke
from tests.model_folders import write_model_folder
from verger import paths
from verger.cli import serve
from verger.gateway import server
from verger.gateway.database import database
from verger.gateway.keys import MAX_PARALLEL, MAX_RPM, digest_of, keys_in_use, prefix_of
from verger.gateway.settings import ServerSettings
from verger.model_folder import HARMONY_TOKENS


def only_key(verger: Verger) -> dict[str, Any]:
    body = json.loads(verger("keys", "list", "--json").out)
    assert body["schema_version"] == 1
    (key,) = body["keys"]
    return dict(key)


def stored_digest() -> bytes:
    with database(paths.database_file()) as connection:
        ((_, digest),) = keys_in_use(connection)
    return digest


def test_a_key_is_printed_alone_and_once(verger: Verger) -> None:
    made = verger("keys", "add", "ada")
    secret = made.out.removesuffix("\n")

    assert made.status == 0
    assert digest_of(secret) == stored_digest()
    assert secret not in made.err
    assert "not shown again" in made.err
    assert "Next:" in made.err
    for listed in (verger("keys", "list"), verger("keys", "list", "--json")):
        assert prefix_of(secret) in listed.out
        assert secret not in listed.out + listed.err


def test_all_that_can_be_said_of_a_key_is_kept(verger: Verger) -> None:
    flags = ["--tenant", "lab", "--class", "batch", "--route", "any", "--budget", "2.5"]
    flags += ["--rpm", "60", "--max-parallel", "4", "--expires", "2999-12-31", "--admin", "--json"]
    made = json.loads(verger("keys", "add", "ci", *flags).out)
    key = only_key(verger)

    assert (made["schema_version"], made["key"]) == (1, key)
    assert digest_of(made["secret"]) == stored_digest()
    assert abs(key.pop("created_unix_s") - time.time()) < 60
    end = datetime.fromtimestamp(key.pop("expires_unix_s"), UTC).astimezone()
    assert end.isoformat()[:19] == "3000-01-01T00:00:00"
    assert key == {
        "prefix": prefix_of(made["secret"]),
        "name": "ci",
        "tenant": "lab",
        "class": "batch",
        "route": "any",
        "monthly_budget_usd": 2.5,
        "rpm": 60,
        "max_parallel": 4,
        "is_admin": True,
        "revoked_unix_s": None,
    }


def test_without_flags_a_key_has_no_limits_and_belongs_to_the_office(verger: Verger) -> None:
    verger("keys", "add", "ada")
    key = only_key(verger)
    assert (key["tenant"], key["class"], key["is_admin"]) == ("office", "interactive", False)
    assert (key["route"], key["monthly_budget_usd"]) == ("local-only", 0)
    assert (key["rpm"], key["max_parallel"], key["expires_unix_s"]) == (None, None, None)


def test_days_end_with_the_last_of_them(verger: Verger) -> None:
    verger("keys", "add", "ada", "--expires", "1d")
    end = datetime.fromtimestamp(only_key(verger)["expires_unix_s"], UTC).astimezone()
    days = (end.date() - datetime.now(UTC).astimezone().date()).days
    assert (end.hour, end.minute, days) == (0, 0, 2)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--route", "cloud"], "prefer-local"),
        (["--budget", "-0.01"], "from 0 to 1,000,000"),
        (["--budget", "1000000.01"], "from 0 to 1,000,000"),
        (["--budget", "nan"], "from 0 to 1,000,000"),
        (["--class", "urgent"], "interactive"),
        (["--rpm", "0"], "1<=x<="),
        (["--rpm", str(MAX_RPM + 1)], "1<=x<="),
        (["--max-parallel", "0"], "1<=x<="),
        (["--max-parallel", str(MAX_PARALLEL + 1)], "1<=x<="),
        (["--tenant", "two words"], "letters"),
        (["--tenant", ""], "letters"),
        (["--expires", "soon"], "write a date"),
        (["--expires", "2020-01-01"], "is over already"),
        (["--expires", "99999d"], "write a date"),
        (["--expires", "9999-12-31"], "write a date"),
    ],
)
def test_what_cannot_be_kept_is_refused(verger: Verger, flags: list[str], message: str) -> None:
    refused = verger("keys", "add", "ada", *flags)
    assert (refused.status, refused.out) == (2, "")
    assert message in " ".join(refused.err.replace("│", " ").split())
    assert json.loads(verger("keys", "list", "--json").out)["keys"] == []


@pytest.mark.parametrize("flags", [["--rpm", str(MAX_RPM)], ["--max-parallel", str(MAX_PARALLEL)]])
def test_limits_go_up_to_their_bound(verger: Verger, flags: list[str]) -> None:
    assert verger("keys", "add", "ada", *flags).status == 0


@pytest.mark.parametrize("name", ["a", "ada@office", "ci-2.x_y", "x" * 64])
def test_names_that_are_taken(verger: Verger, name: str) -> None:
    assert verger("keys", "add", name).status == 0


@pytest.mark.parametrize("name", ["", " ", "two words", "-a", ".a", "x" * 65, "vg-1", "a\n", "ä"])
def test_names_that_are_not_taken(verger: Verger, name: str) -> None:
    assert verger("keys", "add", "--", name).status == 2


def test_a_name_in_use_is_refused_in_one_line(verger: Verger) -> None:
    verger("keys", "add", "ada")
    refused = verger("keys", "add", "ada")
    assert (refused.status, refused.out, refused.err.count("\n")) == (3, "", 1)
    assert refused.err.startswith("verger: there is a key named ada already")


def test_a_revoked_key_is_listed_last_and_its_name_is_free(verger: Verger) -> None:
    secret = verger("keys", "add", "ada").out.strip()
    revoked = verger("keys", "revoke", "ada")
    assert revoked == Outcome(0, f"Revoked the key of ada ({prefix_of(secret)}).\n", "")
    verger("keys", "add", "ada", "--admin", "--expires", "2999-12-31")
    _, first, second = verger("keys", "list").out.splitlines()

    assert first.endswith("admin until 2999-12-31")
    assert second.split()[:2] == ["ada", prefix_of(secret)]
    assert "revoked 2" in second


def test_revoking_a_leaked_key_does_not_repeat_it(verger: Verger) -> None:
    secret = verger("keys", "add", "ada").out.strip()
    for status in (0, 3):
        outcome = verger("keys", "revoke", secret)
        assert outcome.status == status
        assert secret not in outcome.out + outcome.err
    assert outcome.err.count("\n") == 1


def test_an_expired_key_is_listed_as_such(verger: Verger) -> None:
    make_key(paths.database_file(), "ada", expires_unix_s=1)
    assert verger("keys", "list").out.splitlines()[1].endswith("expired")


def test_an_empty_list_says_what_to_do(verger: Verger) -> None:
    assert "verger keys add NAME" in verger("keys", "list").out


def test_a_database_that_cannot_be_used_is_named_in_one_line(verger: Verger) -> None:
    paths.database_file().mkdir(parents=True)
    for command in (["add", "ada"], ["list"], ["revoke", "ada"]):
        outcome = verger("keys", *command)
        assert (outcome.status, outcome.err.count("\n")) == (3, 1)
        assert str(paths.database_file()) in outcome.err


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[ServerSettings]:
    """What `verger serve` would have started."""
    settings: list[ServerSettings] = []

    def run(given: ServerSettings, *_: object) -> int:
        settings.append(given)
        return 0

    # The command holds SIGHUP back, but this process is not its own.
    monkeypatch.setattr(signal, "pthread_sigmask", lambda how, signals: set())
    monkeypatch.setattr(server, "run", run)
    monkeypatch.setattr(serve, "has_engine", lambda: True)
    write_model_folder(tmp_path / "model", tokens=HARMONY_TOKENS)
    return settings


def test_on_loopback_without_keys_it_is_open_and_says_so(
    verger: Verger, started: list[ServerSettings], tmp_path: Path
) -> None:
    outcome = verger("serve", "--model", str(tmp_path / "model"))
    assert outcome.err == (
        "verger: no key is asked for: only this machine can connect, and no key was made yet\n"
    )
    assert [(s.database_file, s.is_insecure) for s in started] == [(paths.database_file(), False)]


def test_on_loopback_with_keys_there_is_nothing_to_say(
    verger: Verger, started: list[ServerSettings], tmp_path: Path
) -> None:
    make_key(paths.database_file(), "ada")
    assert verger("serve", "--model", str(tmp_path / "model")).err == ""
    revoke(paths.database_file(), "ada")
    assert verger("serve", "--model", str(tmp_path / "model")).err == ""
    assert len(started) == 2


def test_on_the_network_it_does_not_start_without_a_key(
    verger: Verger, started: list[ServerSettings], tmp_path: Path
) -> None:
    command = ["serve", "--model", str(tmp_path / "model"), "--host", "0.0.0.0"]
    for _ in range(2):
        refused = verger(*command)
        assert (refused.status, refused.out, refused.err.count("\n")) == (3, "", 1)
        assert "verger keys add NAME" in refused.err
        make_key(paths.database_file(), "ada")
        revoke(paths.database_file(), "ada")
    assert not started
    make_key(paths.database_file(), "ada")
    assert verger(*command) == Outcome(0, "", "")
    assert len(started) == 1


def test_told_to_be_insecure_it_warns_every_time(
    verger: Verger, started: list[ServerSettings], tmp_path: Path
) -> None:
    command = ["serve", "--model", str(tmp_path / "model"), "--insecure-no-auth"]
    for host in ("0.0.0.0", "127.0.0.1"):
        for _ in range(2):
            outcome = verger(*command, "--host", host)
            assert (outcome.status, outcome.err.count("\n")) == (0, 1)
            assert f"INSECURE: whoever reaches {host}" in outcome.err
        make_key(paths.database_file(), f"of-{host}")
    assert all(settings.is_insecure for settings in started)
