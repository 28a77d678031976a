"""`verger upgrade --back`: to the version before, and forward again; on a Mac of stand-ins."""

import sqlite3
from contextlib import closing
from copy import deepcopy
from pathlib import Path

import pytest

from tests.command_line import Verger
from tests.fake_mac import FakeMac, source
from verger import paths
from verger.cli import service_mac
from verger.errors import InstallError, StepFailed
from verger.gateway.database import MIGRATIONS
from verger.macos.layout import TEMPLATE_NAME
from verger.macos.service_plan import Wanted, back_steps, install_steps
from verger.macos.source import Interpreter
from verger.macos.steps import Step
from verger.macos.survey import Facts, survey

TEMPLATE = (paths.data_dir() / "launchd" / TEMPLATE_NAME).read_bytes()
URL = "http://127.0.0.1:8374"
START = ["enable", "bootstrap", "kickstart", "print"]


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeMac:
    """With version 1 and then 2, each with a plist of its own, and a database."""
    monkeypatch.setattr(Interpreter, "is_in_a_home", property(lambda p: "Users" in p.prefix.parts))
    fake = FakeMac(tmp_path / "mac")
    install(fake, "1")
    database = fake.layout.home / "verger.db"
    database.write_bytes(b"keys")
    database.chmod(0o600)
    fake.owners[str(database)] = "_verger:admin"
    install(fake, "2")
    return fake


def facts(fake: FakeMac) -> Facts:
    interpreter = fake.layout.interpreters / "cpython-3.13" / "bin" / "python3.13"
    known = fake.layout.record.exists()
    return survey(fake.layout, fake, interpreter, has_keys=known, has_model=True)


def install(fake: FakeMac, name: str) -> None:
    template = TEMPLATE.replace(b"8192", f"819{name}".encode())
    wanted = Wanted(source(name), fake.private_python, template, URL)
    fake.executor.carry_out(install_steps(fake.layout, facts(fake), wanted))


def back(fake: FakeMac) -> list[Step]:
    return back_steps(fake.layout, facts(fake), URL)


def told(fake: FakeMac) -> tuple[Path, bytes, bytes]:
    """What runs, and what launchd and the next command know of it."""
    layout = fake.layout
    return layout.current.readlink(), layout.plist.read_bytes(), layout.record.read_bytes()


def test_going_back_twice_goes_forward_again(fake: FakeMac) -> None:
    second = told(fake)
    fake.calls.clear()
    fake.executor.carry_out(back(fake))
    assert fake.verbs() == ["version", "print", "bootout", "print", *START]
    assert fake.is_loaded
    environment, plist, record = told(fake)
    assert environment == Path("env/0.1.0-1")
    assert b"8191" in plist
    assert b"0.1.0-1" in record
    assert not facts(fake).is_edited
    assert (fake.layout.home / "verger.db").read_bytes() == b"keys"
    left = {path.name for path in fake.layout.home.iterdir()}
    assert not {".going-back", "verger.db.before-upgrade"} & left
    fake.executor.carry_out(back(fake))
    assert told(fake) == second


def test_a_version_that_does_not_know_the_database_is_refused_before_anything_stops(
    fake: FakeMac,
) -> None:
    before = deepcopy(fake.snapshot())
    fake.outdated = {"0.1.0-1"}
    steps = back(fake)
    fake.calls.clear()
    with pytest.raises(StepFailed, match=r"a newer Verger has .*; to go back stop the service"):
        fake.executor.carry_out(steps)
    assert fake.verbs() == []
    assert fake.snapshot() == before


def test_once_a_backup_from_before_was_restored_it_goes_back_stopped_or_not(fake: FakeMac) -> None:
    fake.is_loaded = False
    fake.calls.clear()
    fake.executor.carry_out(back(fake))
    assert fake.verbs() == ["version", "print", *START]
    assert (fake.is_loaded, told(fake)[0]) == (True, Path("env/0.1.0-1"))


def test_what_is_asked_of_it_fails_with_a_newer_database(verger: Verger, verger_home: Path) -> None:
    verger("keys", "add", "ada")
    assert '"schema_version"' in verger("keys", "list", "--json").out
    with closing(sqlite3.connect(verger_home / "verger.db")) as connection:
        connection.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    refused = verger("keys", "list", "--json")
    assert (refused.status, "a newer Verger" in refused.err) == (3, True)


def test_wherever_it_fails_the_version_that_ran_runs(fake: FakeMac) -> None:
    steps = back(fake)
    fake.calls.clear()
    fake.executor.carry_out(steps)
    calls, failures = len(fake.calls), 0
    fake.executor.carry_out(back(fake))
    before = deepcopy(fake.snapshot())
    for number in range(calls):
        fake.calls.clear()
        fake.fail_at = number
        if reason := failure(fake, steps):
            failures += 1
            assert reason.endswith("; everything is as it was before")
        else:
            # The call that failed was a question whose answer is not needed.
            fake.executor.carry_out(back(fake))
        assert fake.snapshot() == before, number
    assert failures > 10


def failure(fake: FakeMac, steps: list[Step]) -> str | None:
    try:
        fake.executor.carry_out(steps)
    except StepFailed as error:
        return str(error)
    finally:
        fake.fail_at = None
    return None


def test_an_old_version_that_does_not_answer_gives_the_database_back(fake: FakeMac) -> None:
    before = deepcopy(fake.snapshot())
    fake.dead = {"0.1.0-1"}
    with pytest.raises(StepFailed, match="everything is as it was before"):
        fake.executor.carry_out(back(fake))
    assert fake.snapshot() == before


def test_without_an_upgrade_there_is_nothing_to_go_back_to(tmp_path: Path, fake: FakeMac) -> None:
    fresh = FakeMac(tmp_path / "fresh")
    install(fresh, "1")
    with pytest.raises(InstallError, match="there is no version to go back to"):
        back(fresh)
    (fake.layout.environment("0.1.0-1") / "complete").unlink()
    with pytest.raises(InstallError, match="there is no version to go back to"):
        back(fake)


def test_what_puts_the_version_right_that_runs_keeps_the_one_before(fake: FakeMac) -> None:
    fake.layout.plist.write_bytes(b"edited")
    install(fake, "2")
    fake.executor.carry_out(back(fake))
    assert told(fake)[0] == Path("env/0.1.0-1")
    install(fake, "3")
    assert {path.name for path in fake.layout.environments.iterdir()} == {"0.1.0-1", "0.1.0-3"}


def test_a_stopped_services_database_comes_back_too(fake: FakeMac) -> None:
    fake.is_loaded = False
    database = fake.layout.home / "verger.db"
    fake.dead = {"0.1.0-3"}
    curl = fake._curl

    def changing(arguments: list[str]) -> object:
        database.write_bytes(b"new")
        return curl(arguments)

    fake._curl = changing  # type: ignore[method-assign, assignment]
    with pytest.raises(StepFailed, match="everything is as it was before"):
        install(fake, "3")
    assert database.read_bytes() == b"keys"
    assert not fake.is_loaded


def test_the_command_says_where_it_goes(
    verger: Verger, fake: FakeMac, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(service_mac, "this_interpreter", lambda: fake.private_python)
    monkeypatch.setattr(service_mac, "this_mac", fake.mac)
    monkeypatch.setattr(service_mac, "_has_model", lambda config, folder: True)
    monkeypatch.setattr(service_mac, "_has_keys", lambda file: True)
    before = fake.snapshot()
    printed = verger("upgrade", "--back", "--dry-run")
    assert (printed.status, printed.err) == (0, "")
    assert printed.out.startswith("# back to version 0.1.0 (0.1.0-1), from 0.1.0-2\n")
    assert f"# link {fake.layout.current} -> env/0.1.0-1" in printed.out
    assert verger("upgrade", "--back", "--source", str(tmp_path)).status == 2
    assert fake.snapshot() == before
    assert "before it    0.1.0-1; verger upgrade --back" in verger("service", "status").out
    fake.layout.plist.write_bytes(b"edited")
    assert verger("upgrade", "--back").status == 6
    went = verger("upgrade", "--back", "--replace-plist")
    assert (went.status, went.err) == (0, "")
    assert went.out.endswith("`verger upgrade --back` once more goes forward again.\n")
