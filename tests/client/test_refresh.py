"""`verger providers refresh`, against a list that a server on loopback plays."""

import json
import threading
import tomllib
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from tests.command_line import Verger
from verger.cli import refresh

LIST = {
    "data": [
        {
            "id": "openai/gpt-oss-20b",
            "pricing": {"prompt": "0.000000015", "completion": "0.00000009", "image": "0"},
            "context_length": 131072,
        },
        {
            "id": "openai/gpt-5-mini",
            "pricing": {
                "prompt": "0.00000025",
                "completion": "0.000002",
                "input_cache_read": "0.000000025",
            },
        },
        {"id": "openai/gpt-oss-20b:free", "pricing": {"prompt": "0", "completion": "0"}},
        {"id": "acme/unknown", "pricing": {"prompt": "0.1", "completion": "0.1"}},
        {"id": "openai/gpt-oss-120b", "pricing": {"prompt": "-1", "completion": "-1"}},
        {"id": "openai/gpt-5-nano", "pricing": {"prompt": "free", "completion": "0"}},
    ]
}


class Answering(HTTPServer):
    """Says the same to whoever asks."""

    status, body = 200, json.dumps(LIST).encode()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/models"


class Handler(BaseHTTPRequestHandler):
    server: Answering

    def do_GET(self) -> None:
        self.send_response(self.server.status)
        self.send_header("content-length", str(len(self.server.body)))
        self.end_headers()
        self.wfile.write(self.server.body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def provider() -> Iterator[Answering]:
    with Answering(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def fetched(home: Path) -> Path:
    (file,) = (home / "fetched" / "prices").iterdir()
    return file


def test_prices_become_a_dated_file(provider: Answering, verger: Verger, verger_home: Path) -> None:
    outcome = verger("providers", "refresh", "--url", provider.url)
    assert outcome.status == 0
    assert "gpt-oss-20b: 0.015 in, 0.09 out" in outcome.out
    written = tomllib.loads(fetched(verger_home).read_text())
    assert (written["provider"], written["fee"], written["source"]) == (
        "openrouter",
        0.055,
        provider.url,
    )
    assert written["models"] == {
        "gpt-oss-20b": {"input_usd": 0.015, "output_usd": 0.09},
        "gpt-5-mini": {"input_usd": 0.25, "output_usd": 2.0, "cached_usd": 0.025},
    }


def test_fetched_prices_count_and_the_older_ones_of_other_models_stay(
    provider: Answering, verger: Verger
) -> None:
    verger("providers", "refresh", "--url", provider.url)
    rows = json.loads(verger("providers", "rank", "--json").out)["rows"]
    prices = {row["model"]: row for row in rows if row["provider"] == "openrouter"}
    assert prices["gpt-oss-20b"]["blended_usd"] == pytest.approx((3 * 0.015 + 0.09) / 4)
    assert prices["gpt-oss-120b"]["date"] == "2026-09-03"


def test_a_days_file_is_written_once(
    provider: Answering, verger: Verger, verger_home: Path
) -> None:
    verger("providers", "refresh", "--url", provider.url)
    before = fetched(verger_home).read_text()
    provider.body = provider.body.replace(b"0.000000015", b"0.000000099")
    outcome = verger("providers", "refresh", "--url", provider.url)
    assert outcome.out.startswith("Today's prices are there already: ")
    assert fetched(verger_home).read_text() == before


@pytest.mark.slow
@pytest.mark.parametrize(
    ("status", "body", "complaint"),
    [
        (500, b"", "500"),
        (302, b"", "302"),
        (200, b"<html>", "cannot fetch prices"),
        (200, b'{"data": [{"id": 7}]}', "cannot fetch prices"),
        (200, b'{"data": []}', "has no price of any of"),
    ],
)
def test_what_is_no_list_of_prices_is_refused(
    status: int,
    body: bytes,
    complaint: str,
    provider: Answering,
    verger: Verger,
    verger_home: Path,
) -> None:
    provider.status, provider.body = status, body
    outcome = verger("providers", "refresh", "--url", provider.url)
    assert (outcome.status, outcome.out) == (3, "")
    assert complaint in outcome.err
    assert not (verger_home / "fetched").exists()


def test_a_list_is_read_up_to_its_bound(
    provider: Answering, verger: Verger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(refresh, "MAX_BODY_BYTES", len(provider.body) - 1)
    outcome = verger("providers", "refresh", "--url", provider.url)
    assert "sends more than" in outcome.err
    monkeypatch.setattr(refresh, "MAX_BODY_BYTES", len(provider.body))
    assert verger("providers", "refresh", "--url", provider.url).status == 0


def test_nobody_there_is_one_line(verger: Verger) -> None:
    outcome = verger("providers", "refresh", "--url", "http://127.0.0.1:1/models")
    assert outcome.status == 3
    assert outcome.err.startswith("verger: cannot fetch prices from http://127.0.0.1:1/models: ")
    assert outcome.err.count("\n") == 1
