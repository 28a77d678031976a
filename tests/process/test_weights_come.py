"""`verger serve` before its model was fetched: the same process serves it once it is there."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from tests.live_mac import PROGRAM
from tests.process.test_setup import TINY
from verger import paths
from verger.bench.children import free_port

pytestmark = [pytest.mark.process, pytest.mark.mlx]


def test_the_server_starts_anew_in_place_once_its_model_is_there(tmp_path: Path) -> None:
    catalogue, home, port = tmp_path / "catalogue", tmp_path / "home", free_port()
    catalogue.mkdir()
    (catalogue / "tiny.toml").write_text(TINY)
    command = [sys.executable, "-P", "-c", PROGRAM, str(catalogue), "serve"]
    command += ["--model", "tiny", "--port", str(port)]
    variables = {**os.environ, "VERGER_HOME": str(home)}
    url = f"http://127.0.0.1:{port}"
    with subprocess.Popen(command, env=variables, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            until(process, "event=no_weights")
            assert "verger pull tiny" in httpx.get(f"{url}/readyz").text

            partial = shutil.copytree(paths.nano_dir(), home / "models" / "tiny.partial")
            partial.rename(home / "models" / "tiny")
            printed = until(process, "event=ready")
            assert "event=weights_found" in printed
            assert "event=started" in printed
            assert said(url) == "You said: The orchard is open."

            process.terminate()
            process.stderr.read()
            assert process.wait(30) == 0
        finally:
            process.kill()


def until(process: "subprocess.Popen[str]", event: str) -> str:
    """What it prints up to there; it must not end before."""
    assert process.stderr is not None
    lines: list[str] = []
    for line in process.stderr:
        lines.append(line)
        if event in line:
            return "".join(lines)
    raise AssertionError("".join(lines))


def said(url: str) -> str:
    body = {"model": "tiny", "messages": [{"role": "user", "content": "The orchard is open."}]}
    response = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=60)
    return str(response.json()["choices"][0]["message"]["content"])
