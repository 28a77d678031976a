"""The engine's start and exit codes, in this process; `tests/process` has the real one."""

import logging
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from tests.fakes import write_model_folder
from verger.engine import __main__ as engine
from verger.errors import EXIT_CANNOT_START, EXIT_USAGE
from verger.messages import PROTOCOL_VERSION, Drain, Fatal, FromEngine, Hello, Ready, ToEngine


@pytest.fixture(autouse=True)
def _keep_this_process_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("signal.signal", lambda *_: None)
    monkeypatch.setattr("verger.log.configure", lambda file: None)


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, int]]:
    """The gateway's socket, and the descriptor that the engine takes over and closes."""
    ours, theirs = socket.socketpair()
    with ours:
        yield ours, theirs.detach()


def send(gateway: socket.socket, *messages: ToEngine) -> None:
    for message in messages:
        payload = msgspec.msgpack.encode(message)
        gateway.sendall(len(payload).to_bytes(4, "little") + payload)


def receive(gateway: socket.socket) -> FromEngine:
    length = int.from_bytes(gateway.recv(4), "little")
    frame: FromEngine = msgspec.msgpack.decode(gateway.recv(length), type=FromEngine)
    return frame


def run(fd: int, folder: Path, script: str = "", *flags: str) -> int:
    (folder / "script.toml").write_text(script)
    flags = ("--fake", str(folder / "script.toml"), "--max-rows", "3", *flags)
    return engine.main(["--fd", str(fd), "--model", str(folder), "--model-id", "tiny", *flags])


def test_a_gateway_that_leaves_before_hello_is_no_failure(
    ends: tuple[socket.socket, int], tmp_path: Path
) -> None:
    gateway, fd = ends
    gateway.close()
    assert run(fd, write_model_folder(tmp_path)) == 0


def test_a_gateway_that_says_nothing_is_waited_for_only_so_long(
    ends: tuple[socket.socket, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway, fd = ends
    monkeypatch.setattr(engine, "HELLO_WAIT_S", 0.01)
    assert run(fd, write_model_folder(tmp_path)) == engine.EXIT_FAILED
    assert receive(gateway) == Fatal("ProtocolError: no Hello within 0 s")


def test_a_failure_is_logged_with_its_traceback(
    ends: tuple[socket.socket, int], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    gateway, fd = ends
    send(gateway, Hello(PROTOCOL_VERSION, 5))
    assert run(fd, write_model_folder(tmp_path), 'start = "fail"') == engine.EXIT_FAILED
    assert receive(gateway) == Fatal("ScriptedFailure: the script lets loading fail")
    assert [record.levelno for record in caplog.records] == [logging.ERROR]
    assert "Traceback" in caplog.text


@pytest.mark.parametrize("version", [PROTOCOL_VERSION - 1, PROTOCOL_VERSION + 1])
def test_another_version_is_refused_for_good(
    ends: tuple[socket.socket, int], tmp_path: Path, version: int
) -> None:
    gateway, fd = ends
    send(gateway, Hello(version, 5))
    assert run(fd, write_model_folder(tmp_path)) == EXIT_CANNOT_START
    fatal = receive(gateway)
    assert isinstance(fatal, Fatal)
    assert fatal.is_permanent
    assert f"version {version}" in fatal.message


def test_a_folder_without_a_model_is_one_sentence_for_good(
    ends: tuple[socket.socket, int], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    gateway, fd = ends
    send(gateway, Hello(PROTOCOL_VERSION, 5))
    assert run(fd, tmp_path) == EXIT_CANNOT_START
    assert receive(gateway) == Fatal(f"{tmp_path / 'tokenizer.json'} is missing.", True)
    assert caplog.text == ""


@pytest.mark.parametrize(
    ("script", "flags"),
    [("", ["--kv-bytes", "4194304"]), ("free_bytes = 4194304", [])],
    ids=["given", "free"],
)
def test_too_little_memory_for_kv_is_said_with_numbers(
    ends: tuple[socket.socket, int], tmp_path: Path, script: str, flags: list[str]
) -> None:
    """A block takes 4 MiB, and the rings of three rows 96 KiB."""
    gateway, fd = ends
    send(gateway, Hello(PROTOCOL_VERSION, 5))
    assert run(fd, write_model_folder(tmp_path), script, *flags) == EXIT_CANNOT_START
    fatal = receive(gateway)
    assert isinstance(fatal, Fatal)
    assert fatal.is_permanent
    assert fatal.message.startswith("4 MiB are too little for KV: 3 rows need at least 5 MiB.")


def test_anything_but_one_hello_is_a_protocol_error(
    ends: tuple[socket.socket, int], tmp_path: Path
) -> None:
    gateway, fd = ends
    send(gateway, Hello(PROTOCOL_VERSION, 5), Drain())
    assert run(fd, write_model_folder(tmp_path)) == engine.EXIT_FAILED
    assert receive(gateway) == Fatal("ProtocolError: Hello, Drain instead of one Hello")


def test_wrong_flags_are_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ending:
        engine.main(["--fd", "x"])
    assert ending.value.code == EXIT_USAGE
    assert "--fd" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("free_mib", "flags", "context_tokens"),
    [(34, [], 34_304), (34, ["--cautious"], 16_896), (5, ["--cautious"], 4_096)],
    ids=["usual", "half", "just enough"],
)
def test_caution_halves_the_memory_for_kv(
    ends: tuple[socket.socket, int],
    tmp_path: Path,
    free_mib: int,
    flags: list[str],
    context_tokens: int,
) -> None:
    """A block of 4,096 positions takes 4 MiB; where there is hardly more, caution takes nothing."""
    gateway, fd = ends
    frames: list[FromEngine] = []

    def drain_once_ready() -> None:
        frames.append(receive(gateway))
        send(gateway, Drain())

    send(gateway, Hello(PROTOCOL_VERSION, 5))
    draining = threading.Thread(target=drain_once_ready, daemon=True)
    draining.start()
    script = f"context_tokens = 100000\nfree_bytes = {free_mib << 20}"
    assert run(fd, write_model_folder(tmp_path), script, *flags) == 0
    draining.join(10)
    (ready,) = frames
    assert isinstance(ready, Ready)
    assert ready.context_tokens == context_tokens
