"""`verger serve` on a network of the test's own: found, asked, and gone before it has stopped."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.lan.networks import Host, Office
from tests.lan.player import player
from tests.lan.serving import serving
from verger import __version__

pytestmark = pytest.mark.process

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
