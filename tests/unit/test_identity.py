"""The id of a server: made once, kept, never made anew by accident."""

import threading
from pathlib import Path
from uuid import UUID

import pytest

from verger import paths
from verger.errors import ConfigError
from verger.gateway.identity import instance_id


def test_it_is_made_once_and_kept(verger_home: Path) -> None:
    file = paths.instance_id_file()
    first = instance_id(file)

    assert file.parent == verger_home
    assert UUID(first).version == 4
    assert instance_id(file) == first
    assert file.read_text() == f"{first}\n"
    assert [path.name for path in verger_home.iterdir()] == ["instance_id"]


def test_only_its_owner_can_read_it(tmp_path: Path) -> None:
    instance_id(tmp_path / "id")
    assert (tmp_path / "id").stat().st_mode & 0o777 == 0o600


def test_servers_that_start_at_once_agree(tmp_path: Path) -> None:
    ready, ids = threading.Barrier(8), []

    def start() -> None:
        ready.wait()
        ids.append(instance_id(tmp_path / "id"))

    threads = [threading.Thread(target=start) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(ids) == 8
    assert len(set(ids)) == 1


@pytest.mark.parametrize("content", ["", "x", "6b0f2b1e-3a5d"])
def test_a_damaged_id_is_not_replaced_silently(content: str, tmp_path: Path) -> None:
    file = tmp_path / "id"
    file.write_text(content)
    with pytest.raises(ConfigError, match="holds no id of a server; restore it, or delete it"):
        instance_id(file)
    assert file.read_text() == content


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "home").write_text("a file")
    with pytest.raises(ConfigError, match="cannot keep this server's id in .*home/id"):
        instance_id(tmp_path / "home" / "id")
