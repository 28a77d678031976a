"""The bench's children: asked a line, answering a line, or failing in one clear error."""

import asyncio
import time
from pathlib import Path

import pytest
from msgspec import Struct

from verger.bench.children import BenchError, Child, ask, child, free_port, wait_ready
from verger.timings import Timings

ANSWERS = "import sys\nfor line in sys.stdin: print('{\"streams\":[]}', flush=True)"
DIES = "import sys; sys.stdin.readline(); sys.exit('no such device')"
HANGS = "import sys\nfor line in sys.stdin: pass"
NOT_A_SERVER = "import sys; sys.exit('port 1 is in use')"
TELLS = 'import os, sys; sys.exit(f\'{os.environ["VERGER_HOME"]} {"PATH" in os.environ}\')'
HTTP_SERVER = """
import http.server, sys
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    statuses = [503, 503, 200]
    def do_GET(self):
        self.send_response(self.statuses.pop(0))
        self.end_headers()
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""
LIMIT_S = 20.0

pytestmark = pytest.mark.process


class Question(Struct):
    text: str


async def answer_of(program: str, folder: Path, limit_s: float = LIMIT_S) -> Timings:
    async with child("worker", ["-c", program], folder) as worker:
        await ask(worker, Question("first"), limit_s)
        return await ask(worker, Question("second"), limit_s)


async def ready_s(program: str, folder: Path) -> tuple[float, Child]:
    port = free_port()
    async with child("server", ["-c", program, str(port)], folder) as server:
        async with asyncio.timeout(LIMIT_S):
            return await wait_ready(server, port, time.monotonic()), server


def test_a_worker_answers_one_question_after_the_other(tmp_path: Path) -> None:
    assert asyncio.run(answer_of(ANSWERS, tmp_path)) == Timings([])


def test_a_worker_that_dies_is_quoted(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="^worker ended: no such device$"):
        asyncio.run(answer_of(DIES, tmp_path))


def test_a_worker_that_hangs_is_given_up_and_ended(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="^worker did not answer within 0 s: it said nothing$"):
        asyncio.run(answer_of(HANGS, tmp_path, limit_s=0.05))


def test_a_server_is_ready_at_its_first_200_and_ended_afterwards(tmp_path: Path) -> None:
    elapsed_s, server = asyncio.run(ready_s(HTTP_SERVER, tmp_path))
    assert elapsed_s > 0
    assert server.process.returncode is not None
    assert server.log.read_text().count("GET /readyz") == 3


def test_a_server_that_cannot_start_is_quoted(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="^server ended: port 1 is in use$"):
        asyncio.run(ready_s(NOT_A_SERVER, tmp_path))


def test_a_child_gets_our_variables_and_its_own(tmp_path: Path) -> None:
    async def last_words() -> str:
        variables = {"VERGER_HOME": "/a home"}
        async with child("worker", ["-c", TELLS], tmp_path, variables) as worker:
            async with asyncio.timeout(LIMIT_S):
                await worker.process.wait()
            return worker.log.read_text().strip()

    assert asyncio.run(last_words()) == "/a home True"
