"""A real `verger pull`, ended in the middle of a file by a signal, and run again."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fake_hub import REPOSITORY, FakeHub, fake_hub
from verger import paths

pytest.importorskip("huggingface_hub")
pytestmark = pytest.mark.process

WEIGHTS = "model.safetensors"
LIMIT_S = 20.0
PROGRAM = """
import sys
from pathlib import Path
from verger import paths
catalogue = Path(sys.argv.pop(1))
paths.catalogue_dir = lambda: catalogue
from verger.cli.main import main
main()
"""
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


def start(hub: FakeHub, folder: Path) -> "subprocess.Popen[str]":
    """As from a shell in which HF_ENDPOINT is set."""
    (folder / "tiny.toml").write_text(CATALOGUE)
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(folder / "hf")}
    command = [sys.executable, "-P", "-c", PROGRAM, str(folder), "pull", "tiny", "--no-load"]
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_pull_that_was_ended_goes_on_where_it_was(
    number: signal.Signals, tmp_path: Path, verger_home: Path
) -> None:
    models = verger_home / "models"
    catalogue = tmp_path / "catalogue"
    catalogue.mkdir()
    files = {file.name: file.read_bytes() for file in paths.nano_dir().iterdir()}
    with fake_hub(files) as hub:
        hub.stall_after = 700_000
        with start(hub, catalogue) as first:
            has_stalled = hub.stalled.wait(LIMIT_S)
            first.send_signal(number)
            _, err = first.communicate(timeout=LIMIT_S)
        assert has_stalled, err
        assert first.returncode == (3 if number is signal.SIGINT else -number)
        if number is signal.SIGINT:
            assert err.startswith("verger: stopped; what has come is kept")
            assert err.count("\n") == 1
        assert not (models / "tiny").exists()
        (part,) = (models / "tiny.partial").glob(f"{WEIGHTS}.*.part")
        held = part.stat().st_size
        hub.stall_after = None
        hub.released.set()
        hub.ranges.clear()
        with start(hub, catalogue) as second:
            _, err = second.communicate(timeout=LIMIT_S)
        assert (second.returncode, err) == (0, "")
        assert hub.ranges == [(WEIGHTS, held)]
    fetched = {file.name: file.read_bytes() for file in (models / "tiny").iterdir()}
    assert fetched == files
