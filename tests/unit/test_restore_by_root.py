"""Root restores for whoever owns the state folder, and does no more than that one could."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.command_line import Verger
from tests.keys import make_key
from verger.macos.owner import acting_for_owner

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can act for somebody else")
SOMEBODY = 12_345
"""Nobody's number, so nobody's groups."""


@pytest.fixture
def place() -> Iterator[Path]:
    """Not below pytest's own folder, which nobody else gets into."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def home(place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    home = place / "home"
    (home / "secrets").mkdir(parents=True)
    (home / "secrets" / "openrouter").write_text("a secret")
    make_key(home / "verger.db", "ada")
    for path in (home, *home.rglob("*")):
        os.chown(path, SOMEBODY, SOMEBODY)
    monkeypatch.setenv("VERGER_HOME", str(home))
    return home


def test_what_is_restored_belongs_to_the_folders_owner_though_only_root_can_read_the_archive(
    verger: Verger, home: Path, place: Path
) -> None:
    file = place / "office.verger"
    assert verger("backup", str(file)).status == 0
    assert (file.stat().st_uid, file.stat().st_mode & 0o777) == (0, 0o600)
    shutil.rmtree(home / "secrets")
    assert verger("restore", str(file)).status == 0
    assert (home / "secrets" / "openrouter").read_text() == "a secret"
    assert {path.stat().st_uid for path in home.rglob("*")} == {SOMEBODY}
    assert os.geteuid() == 0


def test_a_folder_that_the_owner_may_not_write_in_is_left_alone(
    verger: Verger, home: Path, place: Path
) -> None:
    file = place / "office.verger"
    assert verger("backup", str(file)).status == 0
    # As if the account had put something in its place that is not its own.
    os.chown(home / "secrets", 0, 0)
    (home / "secrets").chmod(0o755)
    refused = verger("restore", str(file))
    assert (refused.status, refused.err.count("\n")) == (3, 1)
    assert refused.err.endswith("Permission denied; nothing was changed\n")
    assert (home / "secrets" / "openrouter").read_text() == "a secret"


def test_root_is_root_again_with_its_groups_whatever_happens(home: Path) -> None:
    groups, seen = os.getgroups(), []

    def breaks() -> None:
        with acting_for_owner(home):
            seen.append((os.geteuid(), os.getegid(), os.getgroups()))
            raise ValueError("it broke")

    with pytest.raises(ValueError, match="it broke"):
        breaks()
    assert seen == [(SOMEBODY, SOMEBODY, [])]
    assert (os.geteuid(), os.getegid(), os.getgroups()) == (0, 0, groups)


def test_what_is_roots_is_done_as_root(tmp_path: Path) -> None:
    with acting_for_owner(tmp_path):
        assert os.geteuid() == 0
