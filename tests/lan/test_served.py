"""`verger serve` on a network of the test's own: found, asked, and gone before it has stopped."""

import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.lan.networks import Host, Office
from tests.lan.player import player
from verger import __version__, paths

pytestmark = pytest.mark.process

SCRIPT = r"""
[[reply]]
text = "<|channel|>final<|message|>aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
step_s = 0.1
"""
WHO = """
import sys, urllib.request
with urllib.request.urlopen(sys.argv[1] + "/livez", timeout=5) as answer:
    print(answer.headers["x-verger-id"])
"""
STREAM = """
import httpx, sys
body = {"model": "gpt-4o", "stream": True, "messages": [{"role": "user", "content": "hi"}]}
url = sys.argv[1] + "/v1/chat/completions"
with httpx.stream("POST", url, json=body, timeout=60) as answer:
    for line in answer.iter_lines():
        if '"content":"a' in line or "[DONE]" in line:
            print(line, flush=True)
"""


@contextmanager
def serving(
    host: Host, home: Path, model: str, *flags: str, **variables: str
) -> Iterator[subprocess.Popen[str]]:
    """A ready server on the host whose engine plays the script."""
    home.mkdir()
    (home / "script.toml").write_text(SCRIPT)
    command = [sys.executable, "-P", "-m", "verger.cli.main", "serve", "--model", model]
    command += ["--fake", str(home / "script.toml"), *flags]
    environment = {**os.environ, "VERGER_HOME": str(home), "VERGER_SERVER_NAME": "office-mini"}
    with subprocess.Popen(
        host.command(*command), env=environment | variables, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stderr is not None
            next(line for line in process.stderr if "event=advertised" in line)
            # Nobody reads on: a thread keeps the pipe from filling.
            threading.Thread(target=process.stderr.read, daemon=True).start()
            yield process
        finally:
            process.kill()


@pytest.fixture
def real_model(tmp_path: Path) -> str:
    """A model that is not called nano."""
    return str(shutil.copytree(paths.nano_dir(), tmp_path / "office-model"))


def test_a_server_is_found_answers_and_is_gone_before_its_last_answer(
    two_hosts: Office, real_model: str, tmp_path: Path
) -> None:
    flags = ("--host", "0.0.0.0", "--insecure-no-auth")
    client = two_hosts.client
    with (
        serving(
            two_hosts.server, tmp_path / "home", real_model, *flags, VERGER_LAN_INTERFACES="lan0"
        ) as server,
        player("lan0", on=client) as browser,
    ):
        (found,) = browser.browse(2.5)
        advert, url = found["advert"], f"http://{found['addresses'][0]}:{found['advert']['port']}"
        assert (advert["name"], advert["model_ids"]) == ("office-mini", ["office-model"])
        assert (advert["version"], found["host"]) == (__version__, "office-mini.local")
        assert client.run(sys.executable, "-c", WHO, url).strip() == advert["id"]

        asking = client.command(sys.executable, "-c", STREAM, url)
        with subprocess.Popen(asking, stdout=subprocess.PIPE, text=True) as stream:
            assert stream.stdout is not None
            assert '"content":"a' in stream.stdout.readline()
            server.send_signal(signal.SIGTERM)
            assert browser.browse(2.5) == []
            assert stream.poll() is None, "the answer is still being given"
            assert stream.stdout.readlines()[-1] == "data: [DONE]\n"
        assert server.wait(30) == 0
    assert two_hosts.server.sent_packets("other0") == 0


def test_the_test_model_is_found_where_loopback_is_named(lonely: Host, tmp_path: Path) -> None:
    with (
        serving(lonely, tmp_path / "home", "nano", VERGER_LAN_INTERFACES="lo"),
        player("lo", on=lonely) as browser,
    ):
        (found,) = browser.browse(2.5)
    assert (found["advert"]["model_ids"], found["addresses"]) == (["nano"], ["127.0.0.1"])
