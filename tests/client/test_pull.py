"""`verger pull` against a hub on loopback that serves the embedded model's own files as `tiny`."""

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from filelock import FileLock

from tests.command_line import Verger
from tests.fake_hub import COMMIT, REPOSITORY, FakeHub, fake_hub
from verger import paths
from verger.cli import download, pull
from verger.memory_fit import MachineMemory

constants = pytest.importorskip("huggingface_hub.constants")

WEIGHTS = "model.safetensors"
CATALOGUE = f"""
id = "tiny"
description = "the embedded model, from a hub"
repository = "{REPOSITORY}"
weight_bytes = 1_210_885
step_bytes = 0
context_tokens = 16_384
kv_bytes_per_token = 1_024
snapshot_bytes = 131_072
"""


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A hub with one model, and a catalogue that knows it; nobody waits between attempts."""
    files = {file.name: file.read_bytes() for file in paths.nano_dir().iterdir()}
    catalogue = tmp_path / "catalogue"
    catalogue.mkdir()
    (catalogue / "tiny.toml").write_text(CATALOGUE)
    monkeypatch.setattr(paths, "catalogue_dir", lambda: catalogue)
    monkeypatch.setattr(pull, "sleep", lambda _: None)
    monkeypatch.setattr(pull, "free_bytes", lambda _: 10**12)
    monkeypatch.setattr(pull, "machine_memory", lambda: MachineMemory.of(64 << 30))
    with fake_hub(files) as served:
        monkeypatch.setattr(constants, "ENDPOINT", served.url)
        yield served


@pytest.fixture
def folder(verger_home: Path) -> Path:
    return verger_home / "models" / "tiny"


@pytest.fixture
def partial(verger_home: Path) -> Path:
    return verger_home / "models" / "tiny.partial"


def part(partial: Path) -> Path:
    """The weights under way."""
    (found,) = partial.glob(f"{WEIGHTS}.*.part")
    return found


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_a_model_arrives_and_a_second_pull_has_nothing_to_do(
    hub: FakeHub, folder: Path, partial: Path, verger: Verger
) -> None:
    first = verger("pull", "tiny", "--no-load")
    assert (first.status, first.err) == (0, "")
    assert COMMIT[:12] in first.out
    assert sorted(hub.asked) == sorted(hub.files), "nothing else is asked for"
    assert f"tiny is in {folder}; serve it: verger serve --model tiny" in first.out
    assert contents(folder) == hub.files
    assert not partial.exists()
    hub.ranges.clear()
    second = verger("pull", "tiny")
    assert second.out == f"tiny is complete in {folder}: nothing to do\n"
    assert not hub.ranges


@pytest.mark.slow
@pytest.mark.mlx
@pytest.mark.process
def test_the_engine_loads_what_has_come(hub: FakeHub, folder: Path, verger: Verger) -> None:
    outcome = verger("pull", "tiny")
    assert (outcome.status, outcome.err) == (0, "")
    assert "loaded in " in outcome.out
    assert contents(folder) == hub.files


@pytest.mark.slow
@pytest.mark.mlx
@pytest.mark.process
def test_what_the_engine_cannot_load_never_gets_its_name(
    hub: FakeHub, folder: Path, partial: Path, verger: Verger
) -> None:
    """The files look right to every check of the folder, but a tensor is missing."""
    config = hub.files["config.json"]
    hub.files["config.json"] = config.replace(b'"num_hidden_layers": 4', b'"num_hidden_layers": 5')
    assert hub.files["config.json"] != config
    outcome = verger("pull", "tiny")
    assert outcome.status == 3
    assert "but tiny cannot be used here: The engine cannot run: cannot load" in outcome.err
    assert not folder.exists()
    assert (partial / WEIGHTS).exists()


def test_cut_connections_are_resumed_where_they_broke(
    hub: FakeHub, folder: Path, verger: Verger
) -> None:
    size = len(hub.files[WEIGHTS])
    small = len(hub.files) - 1
    hub.cut_after = [10**9] * small + [300_000, 0, 400_000]
    assert verger("pull", "tiny", "--no-load").status == 0
    starts = [start for name, start in hub.ranges if name == WEIGHTS]
    assert starts == [0, 300_000, 300_000, 700_000]
    assert contents(folder)[WEIGHTS] == hub.files[WEIGHTS]
    assert size > 700_000


def test_a_hub_that_cannot_skip_sends_it_all_again(
    hub: FakeHub, folder: Path, verger: Verger
) -> None:
    hub.knows_range = False
    hub.cut_after = [10**9] * (len(hub.files) - 1) + [300_000]
    assert verger("pull", "tiny", "--no-load").status == 0
    assert contents(folder) == hub.files


@pytest.mark.parametrize(("fruitless", "status"), [(4, 0), (5, 3)])
def test_a_hub_that_brings_nothing_is_given_up_after_five_attempts(
    fruitless: int, status: int, hub: FakeHub, folder: Path, partial: Path, verger: Verger
) -> None:
    assert download.MAX_FRUITLESS == 5
    hub.statuses = [503] * fruitless
    outcome = verger("pull", "tiny", "--no-load")
    assert outcome.status == status
    assert folder.exists() is (status == 0)
    if status:
        assert outcome.err.count("\n") == 1
        assert "stopped coming at 0 of" in outcome.err
        assert "the hub answers 503): run the same command again, it goes on" in outcome.err


def test_what_had_come_is_kept_for_the_next_pull(
    hub: FakeHub, folder: Path, partial: Path, verger: Verger
) -> None:
    hub.cut_after = [10**9] * (len(hub.files) - 1) + [500_000] + [0] * 5
    outcome = verger("pull", "tiny", "--no-load")
    assert outcome.status == 3
    assert "stopped coming at 500,000 of" in outcome.err
    assert part(partial).stat().st_size == 500_000
    assert not folder.exists()
    hub.ranges.clear()
    hub.cut_after = []
    assert verger("pull", "tiny", "--no-load").status == 0
    assert hub.ranges == [(WEIGHTS, 500_000)]
    assert contents(folder) == hub.files


def test_ctrl_c_keeps_what_has_come(
    hub: FakeHub, folder: Path, partial: Path, verger: Verger, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.cut_after = [10**9] * (len(hub.files) - 1) + [500_000, 0]

    def interrupt(_: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(pull, "sleep", interrupt)
    outcome = verger("pull", "tiny", "--no-load")
    assert (outcome.status, outcome.err.count("\n")) == (3, 1)
    assert "`verger pull tiny` goes on from there" in outcome.err
    assert part(partial).stat().st_size == 500_000
    assert not folder.exists()


def test_a_wrong_checksum_is_removed_and_said(
    hub: FakeHub, folder: Path, partial: Path, verger: Verger
) -> None:
    hub.wrong = {WEIGHTS}
    outcome = verger("pull", "tiny", "--no-load")
    assert (outcome.status, outcome.err.count("\n")) == (3, 1)
    assert f"{WEIGHTS} came with another checksum" in outcome.err
    assert not folder.exists()
    assert sorted(contents(partial)) == sorted(set(hub.files) - {WEIGHTS})


def test_a_damaged_folder_is_mended_file_by_file(
    hub: FakeHub, folder: Path, verger: Verger
) -> None:
    assert verger("pull", "tiny", "--no-load").status == 0
    (folder / WEIGHTS).write_bytes(hub.files[WEIGHTS][:1000])
    (folder / "left.part").write_bytes(b"of another revision")
    hub.ranges.clear()
    assert verger("pull", "tiny", "--no-load").status == 0
    assert set(hub.asked) == {WEIGHTS}
    assert contents(folder) == hub.files


def test_too_little_disk_is_refused_before_anything_is_fetched(
    hub: FakeHub, partial: Path, verger: Verger, monkeypatch: pytest.MonkeyPatch
) -> None:
    needed = sum(map(len, hub.files.values())) + pull.SPARE_BYTES
    monkeypatch.setattr(pull, "free_bytes", lambda _: needed - 1)
    outcome = verger("pull", "tiny", "--no-load")
    assert (outcome.status, outcome.err.count("\n")) == (3, 1)
    assert "GB must stay free, but 2.0 GB are left on the disk of" in outcome.err
    assert not hub.ranges
    monkeypatch.setattr(pull, "free_bytes", lambda _: needed)
    assert verger("pull", "tiny", "--no-load").status == 0


def test_a_disk_that_fills_up_keeps_what_has_come(
    hub: FakeHub, folder: Path, verger: Verger, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    outcome = verger("pull", "tiny", "--no-load")
    assert (outcome.status, outcome.err.count("\n")) == (3, 1)
    assert "No space left on device; what has come so far is kept: make room" in outcome.err
    assert not folder.exists()


def test_a_folder_that_cannot_be_written_is_said(
    hub: FakeHub, verger_home: Path, verger: Verger
) -> None:
    verger_home.mkdir()
    (verger_home / "models").write_text("a file where the folder should be")
    outcome = verger("pull", "tiny", "--no-load")
    assert (outcome.status, outcome.err.count("\n")) == (3, 1)
    assert f"cannot write {verger_home / 'models'}" in outcome.err


def test_two_pulls_at_once_do_not_write_the_same_files(
    hub: FakeHub, folder: Path, verger: Verger
) -> None:
    folder.parent.mkdir(parents=True)
    with FileLock(folder.parent / ".tiny.lock"):
        outcome = verger("pull", "tiny", "--no-load")
    assert outcome.status == 3
    assert "another `verger pull tiny` is running" in outcome.err
    assert verger("pull", "tiny", "--no-load").status == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"repository": "orchard/none"}, "there is no orchard/none at http"),
        ({"revision": "v9"}, "orchard/tiny has no revision 'v9' at http"),
    ],
)
def test_what_the_hub_does_not_have_is_named(
    change: dict[str, str], message: str, hub: FakeHub, verger: Verger
) -> None:
    file = paths.catalogue_dir() / "tiny.toml"
    (key, value), *_ = change.items()
    lines = [line for line in CATALOGUE.splitlines() if not line.startswith(key)]
    file.write_text("\n".join([*lines, f'{key} = "{value}"']))
    outcome = verger("pull", "tiny")
    assert (outcome.status, outcome.err.count("\n")) == (3, 1)
    assert message in outcome.err


def test_an_unknown_model_and_one_too_large_are_refused(
    hub: FakeHub, verger: Verger, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcome = verger("pull", "gpt-2")
    assert outcome == type(outcome)(
        3, "", "verger: there is no model 'gpt-2' to fetch: take tiny\n"
    )
    monkeypatch.setattr(pull, "machine_memory", lambda: MachineMemory.of(1 << 20))
    outcome = verger("pull", "tiny")
    assert outcome.status == 3
    assert "tiny does not fit this machine" in outcome.err
    assert not hub.ranges


def test_offline_is_said_and_not_tried(
    hub: FakeHub, verger: Verger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    outcome = verger("pull", "tiny")
    assert (outcome.status, outcome.err.count("\n")) == (3, 1)
    assert "HF_HUB_OFFLINE is set" in outcome.err


def test_a_hub_that_does_not_answer_is_named(
    hub: FakeHub, verger: Verger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    outcome = verger("pull", "tiny")
    assert (outcome.status, outcome.err.count("\n")) == (3, 1)
    assert "cannot reach http://127.0.0.1:9 (ConnectError)" in outcome.err


@pytest.mark.parametrize("name", ["../evil.json", "/etc/evil", "a/../../evil"])
def test_a_hub_cannot_write_outside_the_folder(
    name: str, hub: FakeHub, verger_home: Path, verger: Verger
) -> None:
    hub.extra = [{"rfilename": name, "size": 1, "blobId": "0" * 40}]
    outcome = verger("pull", "tiny")
    assert outcome.status == 3
    assert "lists a file that cannot be taken" in outcome.err
    assert not hub.ranges


@pytest.mark.parametrize(("more", "status"), [(0, 0), (1, 3)])
def test_a_repository_has_a_bounded_number_of_files(
    more: int, status: int, hub: FakeHub, verger: Verger
) -> None:
    from verger.cli.hub import MAX_FILES

    hidden = [{"rfilename": f".{number}", "size": 1} for number in range(MAX_FILES)]
    hub.extra = hidden[: MAX_FILES - len(hub.files) + more]
    assert verger("pull", "tiny", "--no-load").status == status


def test_what_is_not_a_model_does_not_get_its_name(
    hub: FakeHub, folder: Path, verger: Verger
) -> None:
    hub.files["config.json"] = b'{"model_type": "llama"}'
    outcome = verger("pull", "tiny")
    assert outcome.status == 3
    assert "what orchard/tiny holds cannot be served" in outcome.err
    assert not folder.exists()


def test_without_the_engine_it_says_what_to_install(
    hub: FakeHub, verger: Verger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pull, "has_engine", lambda: False)
    outcome = verger("pull", "tiny")
    assert outcome.status == 3
    assert "verger[engine]" in outcome.err
