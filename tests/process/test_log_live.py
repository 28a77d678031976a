"""`verger serve` with a log file: what goes where, and why it was started again."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests.fakes import write_model_folder
from tests.model_folders import write_model_folder as write_whole_model_folder
from tests.process.serving import SCRIPT, VERGER
from verger.bench.children import free_port
from verger.model_folder import HARMONY_TOKENS

pytestmark = pytest.mark.process


@contextmanager
def ready(folder: Path, home: Path) -> Iterator[subprocess.Popen[str]]:
    folder.mkdir()
    (folder / "script.toml").write_text(SCRIPT)
    model = write_whole_model_folder(folder / "model", tokens=HARMONY_TOKENS)
    write_model_folder(model)
    port = free_port()
    command = [*VERGER, "serve", "--port", str(port), "--model", str(model)]
    command += ["--fake", str(folder / "script.toml")]
    variables = {**os.environ, "VERGER_HOME": str(home), "VERGER_LOG_FILE": "log/verger.log"}
    with subprocess.Popen(command, env=variables, stderr=subprocess.PIPE, text=True) as process:
        try:
            transport = httpx.HTTPTransport(retries=10)
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", transport=transport) as http:
                while http.get("/readyz", timeout=30).status_code != 200:
                    assert process.poll() is None
            yield process
        finally:
            process.kill()


def test_the_log_is_in_its_file_and_says_why_the_server_was_started(tmp_path: Path) -> None:
    home = tmp_path / "state"
    with ready(tmp_path / "1", home) as first:
        first.terminate()
        _, printed = first.communicate(timeout=30)
    with ready(tmp_path / "2", home) as second:
        second.kill()
    with ready(tmp_path / "3", home):
        pass

    assert "event=" not in printed
    log = (home / "log" / "verger.log").read_text()
    reasons = [line.split("reason=")[1] for line in log.splitlines() if "event=started" in line]
    assert reasons == ["first", "clean", "crash"]
    assert (home / "log" / "verger-engine.log").exists()
