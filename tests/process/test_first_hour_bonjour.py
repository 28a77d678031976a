"""What a second machine finds, with a stand-in for ssh that runs the question here."""

import json
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest
import trustme

from scripts.hour.bonjour import found_from, served_id
from scripts.hour.parts import Fail, Skip, at
from scripts.hour.run import run_command
from tests.certificates import write_certificate
from tests.process.stand_ins import SSH, write_program

pytestmark = pytest.mark.process

ID = "5c1f8c52-6f3d-4f0e-9d5e-0a4a5d8f8f11"
URL = "http://127.0.0.1:8374"
ZONE = f"""
office._verger._tcp    SRV 0 0 8374 office.local.
office._verger._tcp    TXT "txtvers=1" "proto=openai" "id={ID}"
"""
DNS_SD = f'#!/bin/sh\ncat <<\'END\'\n{ZONE}END\n: >"$(dirname "$0")/printed"\nexec /bin/sleep 300\n'
SLEEP = '#!/bin/sh\nwhile [ ! -e "$(dirname "$0")/printed" ]; do :; done\n'
"""Until dns-sd has printed; else as long as it takes."""


@pytest.fixture
def second(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the second machine's programs."""
    write_program(tmp_path / "ssh", SSH)
    for tool in ("cat", "dirname"):
        (tmp_path / tool).symlink_to(f"/bin/{tool}" if tool == "cat" else "/usr/bin/dirname")
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path


def discovering(folder: Path, *ids: str, status: int = 0) -> None:
    body = json.dumps({"instances": [{"id": one} for one in ids]})
    write_program(folder / "verger", f"#!/bin/sh\necho '{body}'\nexit {status}\n")


def found(server_id: str | None = ID, machine: str | None = "ada@laptop") -> object:
    return found_from(machine, URL, run_command, lambda url: server_id)


def test_the_second_machine_finds_this_service(second: Path) -> None:
    discovering(second, "another", ID)
    assert at(found(), "is_found") is True
    assert at(found(), "by") == "verger"


@pytest.mark.parametrize(("ids", "status"), [(["another"], 0), ([], 3)])
def test_a_service_that_is_not_found_is_a_failure(
    second: Path, ids: list[str], status: int
) -> None:
    discovering(second, *ids, status=status)
    with pytest.raises(Fail, match=f"ada@laptop does not find {ID}") as failed:
        found()
    assert at(failed.value.answer, "is_found") is False


def test_without_verger_there_the_systems_own_browser_is_asked(second: Path) -> None:
    write_program(second / "dns-sd", DNS_SD)
    write_program(second / "sleep", SLEEP)
    assert at(found(), "by") == "dns-sd"
    with pytest.raises(Fail, match="does not find another"):
        found("another")


def test_a_second_machine_with_neither_is_skipped(second: Path) -> None:
    write_program(second / "sleep", "#!/bin/sh\n")
    with pytest.raises(Skip, match="neither verger nor dns-sd"):
        found()


def test_a_connection_that_fails_is_quoted(second: Path) -> None:
    write_program(second / "ssh", "#!/bin/sh\necho 'ssh: no route to host' >&2\nexit 255\n")
    with pytest.raises(Fail, match="ssh: no route to host"):
        found()


def test_what_is_missing_here_is_said(second: Path) -> None:
    with pytest.raises(Skip, match="--second-machine USER@HOST"):
        found(machine=None)
    with pytest.raises(Skip, match="is no USER@HOST"):
        found(machine="-oProxyCommand=true")
    with pytest.raises(Skip, match=f"no Verger answers at {URL}"):
        found(server_id=None)
    (second / "ssh").unlink()
    with pytest.raises(Skip, match="no ssh here"):
        found()


class _Health(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("x-verger-id", ID)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, format: str, *arguments: object) -> None:
        """Nothing."""


@contextmanager
def answering(server: HTTPServer) -> Iterator[int]:
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_the_service_says_which_one_it_is_with_tls_and_without(tmp_path: Path) -> None:
    with answering(HTTPServer(("127.0.0.1", 0), _Health)) as port:
        assert served_id(f"http://127.0.0.1:{port}") == ID
        assert served_id(f"https://127.0.0.1:{port}") is None
    server = HTTPServer(("127.0.0.1", 0), _Health)
    server.socket = context_of(tmp_path).wrap_socket(server.socket, server_side=True)
    with answering(server) as port:
        assert served_id(f"https://127.0.0.1:{port}") == ID
    assert served_id(f"http://127.0.0.1:{port}") is None
    assert served_id("127.0.0.1:8374") is None


def context_of(folder: Path) -> ssl.SSLContext:
    files = write_certificate(trustme.CA(), folder)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files.cert, files.key)
    return context
