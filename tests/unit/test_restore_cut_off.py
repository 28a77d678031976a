"""A restore that is killed between any two of its moves leaves nothing half, and loses nothing."""

import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.command_line import Verger
from tests.forks import forked
from tests.keys import make_key
from verger.cli import backup, exchange

OLD = {"config.toml": "# old", "instance_id": "old", "secrets/openrouter": "old"}
NEW = {"config.toml": "# new", "instance_id": "new", "tls/key.pem": "new"}
SURVIVOR = {"secrets/openrouter": "old"}
"""What the archive does not hold."""


@pytest.fixture
def home(verger_home: Path) -> Path:
    return verger_home


@pytest.fixture
def archive(verger: Verger, home: Path, tmp_path: Path) -> Path:
    """Of another state; the home has the old one, and bob instead of ada."""
    file = tmp_path / "office.verger"
    fill(home, NEW, key="ada")
    assert verger("backup", str(file)).status == 0
    shutil.rmtree(home)
    fill(home, OLD, key="bob")
    shutil.copytree(home, tmp_path / "before")
    return file


def fill(home: Path, files: dict[str, str], *, key: str) -> None:
    for name, text in files.items():
        (home / name).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        (home / name).write_text(text)
    make_key(home / "verger.db", key)


def settings(home: Path) -> dict[str, str]:
    files = (path for path in home.rglob("*") if path.is_file() and "verger.db" not in path.name)
    return {path.relative_to(home).as_posix(): path.read_text() for path in files}


def is_killed(act: Callable[[], object], move: int) -> bool:
    """Whether `act`, in a process of its own, came as far as this move, and no further."""

    def counted() -> None:
        moves = iter(range(1000))
        for name in ("replace", "link", "unlink", "rmdir", "mkdir"):
            setattr(os, name, killed_at(move, moves, getattr(os, name)))
        act()

    return os.WIFSIGNALED(os.waitpid(forked(counted), 0)[1])


def killed_at(move: int, moves: Iterator[int], real: Callable[..., None]) -> Callable[..., None]:
    def counted(*arguments: object, **named: object) -> None:
        if next(moves) == move:
            os.kill(os.getpid(), signal.SIGKILL)
        real(*arguments, **named)

    return counted


def again(home: Path, tmp_path: Path) -> None:
    shutil.rmtree(home)
    shutil.copytree(tmp_path / "before", home)


def test_killed_anywhere_it_is_undone_or_done_by_the_next_backup(
    verger: Verger, home: Path, archive: Path, tmp_path: Path
) -> None:
    move, undone, done = 0, 0, 0
    while is_killed(lambda: backup.restore(archive), move):
        for name in ("config.toml", "instance_id", "verger.db"):
            assert (home / name).exists(), "at no moment is one missing"
        made = verger("backup", str(tmp_path / f"{move}.verger"))
        assert made.status == 0
        left = settings(home)
        if "bob" in verger("keys", "list").out:
            undone += "was undone first" in made.err
            assert {name: left[name] for name in OLD} == OLD
            assert "tls/key.pem" not in left
        else:
            done += 1
            assert {name: left[name] for name in NEW | SURVIVOR} == NEW | SURVIVOR
        assert not exchange.is_cut_off(home)
        assert verger("restore", str(archive)).status == 0
        assert settings(home) == NEW | SURVIVOR
        again(home, tmp_path)
        move += 1
    assert settings(home) == NEW | SURVIVOR
    # Journal, three files with a link each where they were there, and what then is removed.
    assert undone >= 6
    assert done >= 3


def test_undoing_it_can_be_killed_too(
    verger: Verger, home: Path, archive: Path, tmp_path: Path
) -> None:
    last = cut_off_late(home, archive, tmp_path)
    move = 0
    while is_killed(lambda: backup.backup(tmp_path / "other.verger"), move):
        assert verger("backup", str(tmp_path / f"{move}.verger")).status == 0
        assert settings(home) == OLD
        again(home, tmp_path)
        assert is_killed(lambda: backup.restore(archive), last)
        move += 1
    assert move > 5


def cut_off_late(home: Path, archive: Path, tmp_path: Path) -> int:
    """Killed at the last move before the database's; returns which that is."""
    move = 0
    while is_killed(lambda: backup.restore(archive), move):
        if settings(home).get("tls/key.pem") == "new":
            return move
        again(home, tmp_path)
        move += 1
    raise AssertionError("it never came so far")


def test_what_was_written_since_is_kept(
    verger: Verger, home: Path, archive: Path, tmp_path: Path
) -> None:
    cut_off_late(home, archive, tmp_path)
    (home / "config.toml").write_text("# edited")
    make_key(home / "verger.db", "eve")
    told = verger("backup", str(tmp_path / "other.verger"))
    assert (told.status, told.err) == (0, "verger: a restore that was cut off was undone first\n")
    assert settings(home) == {**OLD, "config.toml": "# edited"}
    assert "eve" in verger("keys", "list").out


def test_a_link_in_the_state_folder_leads_no_file_out_of_it(
    verger: Verger, home: Path, archive: Path, tmp_path: Path
) -> None:
    (tmp_path / "elsewhere").mkdir()
    (home / "tls").symlink_to(tmp_path / "elsewhere")
    refused = verger("restore", str(archive))
    assert (refused.status, "tls is a symbolic link" in refused.err) == (3, True)
    (tmp_path / "elsewhere" / "key.pem").write_text("somebody's")
    assert "is not a plain file" in verger("backup", str(tmp_path / "other.verger")).err
    (home / "tls").unlink()
    (home / "config.toml").unlink()
    (home / "config.toml").mkdir()
    refused = verger("restore", str(archive))
    assert (refused.status, "config.toml is not a file" in refused.err) == (3, True)
    assert not list((tmp_path / "elsewhere").glob("*.toml"))
    assert not list(home.glob(".restore-*"))


def test_what_an_interrupted_restore_has_moved_is_back_at_once(
    verger: Verger, home: Path, archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C, which is no OSError."""
    replace, moves = os.replace, iter(range(99))

    def interrupted(source: Path, target: Path) -> None:
        if next(moves) == 3:
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        backup.restore(archive)
    assert settings(home) == OLD
