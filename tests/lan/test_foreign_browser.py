"""Our records in the eyes of a browser that is not ours: the npm package bonjour-service.

`scripts/fetch_bonjour` installs it. Without it, or without node, the tests skip, unless
VERGER_REQUIRE_ORACLE=1 says that it must be there, as scripts/test does.
"""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.lan.networks import Office
from tests.lan.player import ADVERT, player
from verger.lan.records import encode_txt, saturn_txt

pytestmark = [pytest.mark.process, pytest.mark.oracle]

FOLDER = Path(__file__).parents[2] / ".bonjour"


@pytest.fixture(scope="module", autouse=True)
def installed() -> None:
    if shutil.which("node") and (FOLDER / "stamp").is_file():
        return
    reason = "needs node, and bonjour-service in .bonjour/: run scripts/fetch_bonjour"
    if os.environ.get("VERGER_REQUIRE_ORACLE") == "1":
        pytest.fail(reason)
    pytest.skip(reason)


@contextmanager
def browsing(office: Office, type_: str) -> Iterator[Iterator[dict[str, Any]]]:
    """What the client's browser sees, as it happens."""
    script = str(Path(__file__).with_name("browse.cjs"))
    command = office.client.command("node", script, str(FOLDER), office.client_address, type_)
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            seen = map(json.loads, process.stdout)
            assert next(seen) == {"event": "listening"}
            yield seen
        finally:
            process.kill()


def test_a_foreign_browser_sees_a_server_come_change_and_go(two_hosts: Office) -> None:
    changed = replace(ADVERT, model_ids=("gpt-oss-120b",))
    with player("lan0", on=two_hosts.server) as server, browsing(two_hosts, "verger") as seen:
        server.start()
        assert next(seen) == {
            "event": "up",
            "name": "office-mini",
            "host": "office-mini.local",
            "port": ADVERT.port,
            "addresses": [two_hosts.server_address],
            "txt": encode_txt(ADVERT),
        }
        server.update(changed)
        update = next(seen)
        assert (update["event"], update["txt"]) == ("txt-update", encode_txt(changed))
        server.stop()
        assert next(seen)["event"] == "down"


def test_a_foreign_browser_finds_a_server_that_was_there_before_it(two_hosts: Office) -> None:
    with player("lan0", on=two_hosts.server) as server:
        server.start()
        with browsing(two_hosts, "saturn") as seen:
            found = next(seen)
    assert (found["event"], found["name"], found["port"]) == ("up", "office-mini", ADVERT.port)
    assert found["txt"] == saturn_txt(ADVERT)
