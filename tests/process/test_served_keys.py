"""`verger serve` with keys, as a process and with an engine process: what tenants share, what a
revoked key meets, and where no key is ever seen."""

import os
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import httpx
import pytest

from tests.keys import make_key, revoke
from tests.process.serving import VERGER, Served, serving

pytestmark = pytest.mark.process


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    with serving(tmp_path / "served") as served:
        yield served


def _processes_of(pid: int) -> dict[int, str]:
    """The process and its children: command lines and environments, as the system shows them."""
    listing = subprocess.run(["ps", "-A", "-o", "pid=,ppid="], capture_output=True, text=True)
    pairs = [tuple(map(int, line.split())) for line in listing.stdout.splitlines()]
    wanted = [pid, *(child for child, parent in pairs if parent == pid)]
    return {
        one: subprocess.run(["ps", "eww", "-p", str(one)], capture_output=True, text=True).stdout
        for one in wanted
    }


def test_tenants_share_no_prefix_and_colleagues_do(served: Served) -> None:
    ada, bob = (make_key(served.database, name) for name in ("ada", "bob"))
    eve, max_ = (make_key(served.database, name, tenant="lab") for name in ("eve", "max"))

    assert served.cached_tokens(ada) == 0
    assert served.cached_tokens(bob) > 0
    assert served.cached_tokens(eve) == 0
    assert served.cached_tokens(max_) > 0


def test_a_revoked_key_is_refused_from_the_next_request_on(served: Served) -> None:
    ada = make_key(served.database, "ada")
    assert served.ask(ada).status_code == 200
    revoke(served.database, "ada")
    assert served.ask(ada).status_code == 401


def test_no_key_and_no_prompt_is_seen_outside(served: Served) -> None:
    """Not in the log, in an error, on a command line or in an environment."""
    keys = [make_key(served.database, name) for name in ("ada", "bob")]
    revoke(served.database, "bob")
    wrong = keys[0][:-1] + ("x" if keys[0][-1] != "x" else "y")
    answers = [served.ask(key) for key in (*keys, wrong)]
    answers += [served.ask(keys[0], stream=True), served.ask(keys[0], tools=1)]
    answers += [httpx.get(f"{served.url}/models/other", headers={"x-api-key": keys[0]})]
    assert [answer.status_code for answer in answers] == [200, 401, 401, 200, 400, 404]
    shown = _processes_of(served.process.pid)
    assert len(shown) == 2
    # So that the absence of keys means something.
    assert all("VERGER_HOME=" in text for text in shown.values())
    assert any("verger.engine" in text for text in shown.values())
    log = served.stop()
    assert log.count("event=request") == len(answers)
    assert log.count("key=ada") == 4

    places = [log, *shown.values(), *(f"{answer.headers} {answer.text}" for answer in answers)]
    for place in places:
        for secret in (*keys, wrong):
            assert secret[12:-1] not in place
    for place in (log, *shown.values()):
        assert "orchard" not in place


def test_beyond_loopback_it_refuses_to_start_without_a_key(verger_home: Path) -> None:
    command = [*VERGER, "serve", "--port", "0", "--model", "nano", "--host", "0.0.0.0"]
    refused = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (refused.returncode, refused.stdout) == (3, "")
    assert refused.stderr.count("\n") == 1
    assert "verger keys add NAME" in refused.stderr


def test_whose_request_it_was_stands_in_the_ledger(served: Served) -> None:
    ada, bob = (make_key(served.database, name) for name in ("ada", "bob"))
    for key in (ada, bob, ada):
        assert served.ask(key).status_code == 200
    served.stop()
    with closing(sqlite3.connect(served.database)) as connection:
        rows = connection.execute("SELECT key_id, route FROM ledger ORDER BY unix_ms").fetchall()
    assert rows == [("ada", "local"), ("bob", "local"), ("ada", "local")]


def test_a_running_server_is_backed_up_and_not_restored(served: Served, tmp_path: Path) -> None:
    ada = make_key(served.database, "ada")
    assert served.ask(ada).status_code == 200
    home = served.database.parent
    archive = str(tmp_path / "office.verger")

    def verger(*arguments: str) -> subprocess.CompletedProcess[str]:
        variables = {**os.environ, "VERGER_HOME": str(home)}
        return subprocess.run([*VERGER, *arguments], env=variables, capture_output=True, text=True)

    assert verger("backup", archive).returncode == 0
    refused = verger("restore", archive)
    assert (refused.returncode, "stop it first" in refused.stderr) == (3, True)
    assert served.ask(ada).status_code == 200
    served.stop()
    assert verger("restore", archive).returncode == 0


def test_keys_are_managed_through_a_server_that_runs(served: Served, tmp_path: Path) -> None:
    """By somebody who names only the socket's folder; the server sees the key at once."""
    home = served.database.parent
    socket = home / "admin.sock"
    assert socket.is_socket()
    assert socket.stat().st_mode & 0o777 == 0o660
    variables = {**os.environ, "VERGER_HOME": str(home)}
    command = [*VERGER, "keys", "add", "zoe"]
    made = subprocess.run(command, env=variables, capture_output=True, text=True)
    assert served.ask(made.stdout.strip()).status_code == 200
    served.stop()
    assert not socket.exists()
