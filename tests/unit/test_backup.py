"""`verger backup` and `verger restore`: everything comes back, and nothing half."""

import hashlib
import io
import os
import sqlite3
import tarfile
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import msgspec
import pytest

from tests.command_line import Verger
from tests.keys import make_key
from verger import paths
from verger.cli import archive
from verger.cli.archive import MAX_FILES, read_archive
from verger.errors import BackupError
from verger.gateway.database import MIGRATIONS, open_database

FILES = {
    "config.toml": b'[server]\nname = "orchard"\n',
    "instance_id": b"7c1d1c86-3c5c-4d3e-8a84-2f2f1f1f1f1f\n",
    "secrets/openrouter": b"a secret",
    "tls/key.pem": b"a key",
}


@pytest.fixture
def home(verger_home: Path) -> Path:
    """A server's state."""
    for name, content in FILES.items():
        (verger_home / name).parent.mkdir(parents=True, exist_ok=True)
        (verger_home / name).write_bytes(content)
    make_key(verger_home / "verger.db", "ada")
    (verger_home / "cache").mkdir()
    (verger_home / "cache" / "block").write_bytes(b"cached")
    return verger_home


def tree(folder: Path) -> dict[str, bytes]:
    found = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}


def settings_of(folder: Path) -> dict[str, bytes]:
    return {name: text for name, text in tree(folder).items() if "verger.db" not in name}


def archived(
    folder: Path,
    files: dict[str, bytes],
    *,
    entries: list[dict[str, object]] | None = None,
    schema_version: int = 1,
    members: Callable[[tarfile.TarFile], None] = lambda archive: None,
) -> Path:
    """An archive as somebody may have made it by hand."""
    listed = entries if entries is not None else [entry(*file) for file in files.items()]
    manifest = {"schema_version": schema_version, "version": "9", "files": listed}
    made = folder / "made.verger"
    with tarfile.open(made, "w") as tar:
        for name, content in {"manifest.json": msgspec.json.encode(manifest), **files}.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
        members(tar)
    return made


def entry(name: str, content: bytes) -> dict[str, object]:
    digest = hashlib.sha256(content).hexdigest()
    return {"name": name, "bytes": len(content), "sha256": digest}


def test_everything_comes_back_on_another_machine(
    verger: Verger, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "office.verger"
    made = verger("backup", str(file))
    assert (made.status, made.err) == (0, "")
    assert file.stat().st_mode & 0o777 == 0o600
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith((".", "tmp"))] == []
    other = tmp_path / "other"
    monkeypatch.setenv("VERGER_HOME", str(other))
    assert verger("restore", str(file)).status == 0
    assert settings_of(other) == FILES
    assert all(path.stat().st_mode & 0o077 == 0 for path in other.rglob("*"))
    assert "ada" in verger("keys", "list").out


def test_a_restore_brings_back_what_was_and_keeps_what_it_does_not_hold(
    verger: Verger, home: Path, tmp_path: Path
) -> None:
    file = str(tmp_path / "office.verger")
    verger("backup", file)
    verger("keys", "add", "bob")
    (home / "config.toml").write_text("")
    (home / "secrets" / "groq").write_text("newer")
    assert verger("restore", file).status == 0
    listed = verger("keys", "list").out
    assert "ada" in listed
    assert "bob" not in listed
    assert (home / "config.toml").read_bytes() == FILES["config.toml"]
    assert (home / "secrets" / "groq").read_text() == "newer"
    assert (home / "cache" / "block").exists()
    assert not list(home.glob(".restore-*"))


def test_a_backup_beside_a_writer_is_whole_and_a_restore_is_refused(
    verger: Verger, home: Path, tmp_path: Path
) -> None:
    """As a server would, another connection has the database open and does nothing."""
    file = str(tmp_path / "office.verger")
    with closing(open_database(home / "verger.db")) as connection:
        connection.execute("SELECT count(*) FROM keys").fetchone()
        make_key(home / "verger.db", "eve")
        assert (home / "verger.db-wal").stat().st_size > 0
        assert verger("backup", file).status == 0
        before = tree(home)
        refused = verger("restore", file)
        assert (refused.status, refused.out, refused.err.count("\n")) == (3, "", 1)
        assert "stop it first" in refused.err
        assert tree(home) == before
    assert verger("restore", file).status == 0
    assert "eve" in verger("keys", "list").out


def test_a_backup_does_not_replace_a_file(verger: Verger, home: Path, tmp_path: Path) -> None:
    (tmp_path / "office.verger").write_text("mine")
    refused = verger("backup", str(tmp_path / "office.verger"))
    assert (refused.status, refused.err.count("\n")) == (3, 1)
    assert (tmp_path / "office.verger").read_text() == "mine"


def test_what_cannot_be_backed_up_is_told(
    verger: Verger, verger_home: Path, tmp_path: Path
) -> None:
    file = str(tmp_path / "office.verger")
    assert "there is no state folder" in verger("backup", file).err
    verger_home.mkdir()
    assert "nothing to back up" in verger("backup", file).err
    (verger_home / "secrets").mkdir()
    (verger_home / "secrets" / "link").symlink_to("/etc/passwd")
    assert "is not a plain file" in verger("backup", file).err
    assert "cannot make" in verger("backup", "/nowhere/office.verger").err
    assert not Path(file).exists()


def test_tls_files_elsewhere_are_named(verger: Verger, home: Path, tmp_path: Path) -> None:
    (home / "config.toml").write_text('[server]\ntls_cert = "/etc/cert"\ntls_key = "/etc/key"\n')
    made = verger("backup", str(tmp_path / "office.verger"))
    assert made.err == "verger: not in it, keep them yourself: /etc/cert, /etc/key\n"


@pytest.mark.parametrize(
    "name",
    [
        "../evil",
        "/etc/evil",
        "secrets/../../evil",
        "secrets/a/b",
        "models/x",
        "secrets/",
        "a\n",
        "secrets/..",
    ],
)
def test_no_name_leads_out_of_the_state_folder(
    verger: Verger, home: Path, tmp_path: Path, name: str
) -> None:
    before, outside = tree(home), sorted(tmp_path.iterdir())
    refused = verger("restore", str(archived(tmp_path, {name: b"x"})))
    assert (refused.status, refused.err.count("\n")) == (3, 1)
    assert "which no backup has" in refused.err
    assert tree(home) == before
    assert sorted(tmp_path.iterdir()) == sorted([*outside, tmp_path / "made.verger"])


def linked(kind: bytes) -> Callable[[tarfile.TarFile], None]:
    def add(tar: tarfile.TarFile) -> None:
        member = tarfile.TarInfo("instance_id")
        member.type, member.linkname = kind, "/etc/passwd"
        tar.addfile(member)

    return add


def test_an_archive_that_is_not_right_changes_nothing(
    verger: Verger, home: Path, tmp_path: Path
) -> None:
    right, empty = entry("instance_id", b"x"), entry("instance_id", b"")
    files = {"instance_id": b"x"}
    newer = tmp_path / "newer.db"
    with closing(sqlite3.connect(newer)) as connection:
        connection.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    cases: dict[str, Callable[[], Path]] = {
        "a format that this version does not read": lambda: archived(
            tmp_path, files, schema_version=2
        ),
        "not as long as": lambda: archived(tmp_path, files, entries=[{**right, "bytes": 2}]),
        "is damaged": lambda: archived(tmp_path, files, entries=[{**right, "sha256": "0" * 64}]),
        "a file twice": lambda: archived(tmp_path, files, entries=[right, right]),
        "lacks instance_id": lambda: archived(tmp_path, {}, entries=[right]),
        "more than its manifest": lambda: archived(tmp_path, files, entries=[]),
        "it is no file": lambda: archived(
            tmp_path, {}, entries=[empty], members=linked(tarfile.SYMTYPE)
        ),
        "or it is no file": lambda: archived(
            tmp_path, {}, entries=[empty], members=linked(tarfile.LNKTYPE)
        ),
        "manifest is damaged": lambda: archived(tmp_path, files, entries=[{"name": "x"}]),
        "database is damaged": lambda: archived(tmp_path, {"verger.db": b"no database" * 999}),
        "a newer Verger has": lambda: archived(tmp_path, {"verger.db": newer.read_bytes()}),
    }
    before = tree(home)
    for message, make in cases.items():
        refused = verger("restore", str(make()))
        assert (refused.status, refused.out, refused.err.count("\n")) == (3, "", 1), message
        assert message in refused.err
        assert tree(home) == before, message


def test_what_is_no_archive_is_told(verger: Verger, home: Path, tmp_path: Path) -> None:
    before = tree(home)
    text = tmp_path / "text"
    text.write_text("no archive")
    (tmp_path / "cut").write_bytes(
        archived(tmp_path, {"instance_id": b"x" * 9000}).read_bytes()[:3000]
    )
    with tarfile.open(tmp_path / "bare", "w") as tar:
        tar.add(text, "instance_id")
    for name in ("text", "cut", "bare", "nowhere", "."):
        refused = verger("restore", str(tmp_path / name))
        assert (refused.status, refused.err.count("\n")) == (3, 1), name
        assert tree(home) == before


@pytest.mark.parametrize("more", [0, 1])
def test_an_archive_has_a_bound_of_files(tmp_path: Path, more: int) -> None:
    made = archived(tmp_path, {f"secrets/s{n}": b"" for n in range(MAX_FILES + more)})
    with made.open("rb") as content:
        if more:
            with pytest.raises(BackupError, match="more than 1000 files"):
                read_archive(content, tmp_path / "out")
        else:
            assert len(read_archive(content, tmp_path / "out")) == MAX_FILES


@pytest.mark.parametrize("more", [0, 1])
def test_an_archive_has_a_bound_of_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: int
) -> None:
    monkeypatch.setattr(archive, "MAX_BYTES", 10)
    made = archived(tmp_path, {"instance_id": b"x" * (10 + more)})
    with made.open("rb") as content:
        if more:
            with pytest.raises(BackupError, match="more than 10 bytes"):
                read_archive(content, tmp_path / "out")
        else:
            assert read_archive(content, tmp_path / "out") == ["instance_id"]


@pytest.mark.parametrize("moved", range(6))
def test_a_file_that_cannot_be_moved_brings_all_back(
    verger: Verger, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moved: int
) -> None:
    file = str(tmp_path / "office.verger")
    verger("backup", file)
    (home / "config.toml").write_text("# since then\n")
    before = settings_of(home)
    replace, moves = os.replace, iter(range(99))

    def failing(source: Path, target: Path) -> None:
        if next(moves) == moved:
            raise PermissionError(13, "Permission denied")
        replace(source, target)

    monkeypatch.setattr(os, "replace", failing)
    refused = verger("restore", file)
    assert refused.status == 3
    assert refused.err.endswith("Permission denied; nothing was changed\n")
    assert settings_of(home) == before
    assert "ada" in verger("keys", "list").out
    assert paths.home() == home
