"""The server as a process: its port, its signals, its exit codes."""

import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.fakes import write_model_folder
from tests.gateway.harness import MODEL_ID, chat_body, ready_gateway, running_gateway
from verger.catalogue import ModelChoice
from verger.cli.server_settings import settings_for
from verger.config import load_config
from verger.errors import EXIT_CANNOT_START, ConfigError, ModelFolderError, PortInUse
from verger.gateway.run_record import Start, StartReason
from verger.gateway.server import (
    SEND_BUFFER_BYTES,
    build_service,
    engine_command,
    listen,
    run,
)
from verger.gateway.settings import ServerSettings
from verger.log import LogFile
from verger.messages import Fatal
from verger.model_folder import ModelFolder

PROGRAM = """
import sys
from pathlib import Path
from verger import log
from verger.gateway.server import run
from verger.gateway.settings import ServerSettings
log.configure()
folder, port, drain_s = Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
sys.exit(run(ServerSettings("test-model", folder / "model", 4096, port=port, drain_s=drain_s,
                            fake_script=folder / "script.toml")))
"""
SCRIPT = """
[[reply]]
match = "slow"
text = "<|channel|>final<|message|>aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
step_s = 0.02
[[reply]]
match = "endless"
text = "<|channel|>final<|message|>aaaa"
hang_at = 9
[[reply]]
match = "die"
text = "<|channel|>final<|message|>aaaa"
die_at = 9
[[reply]]
text = "<|channel|>final<|message|>hello"
"""


@contextmanager
def server_process(
    folder: Path, drain_s: float = 20
) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A ready server with a scripted engine, and its URL."""
    write_model_folder(folder / "model")
    (folder / "script.toml").write_text(SCRIPT)
    command = [sys.executable, "-c", PROGRAM, str(folder), "0", str(drain_s)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        url = next(line for line in process.stderr if "event=listening" in line).split("url=")[1]
        next(line for line in process.stderr if "event=ready" in line)
        # Nobody reads on: a thread keeps the pipe from filling.
        threading.Thread(target=process.stderr.read, daemon=True).start()
        try:
            yield process, url.strip().removesuffix("/v1")
        finally:
            process.kill()


def asking(content: str, **fields: Any) -> dict[str, Any]:
    return chat_body(messages=[{"role": "user", "content": content}], **fields)


@contextmanager
def running_stream(url: str, content: str) -> Iterator[Iterator[str]]:
    """The lines of a stream whose answer has begun."""
    url = f"{url}/v1/chat/completions"
    with httpx.stream("POST", url, json=asking(content, stream=True), timeout=60) as response:
        lines = response.iter_lines()
        next(line for line in lines if '"content":"a' in line)
        yield lines


@pytest.mark.process
@pytest.mark.parametrize("name", ["SIGTERM", pytest.param("SIGINT", marks=pytest.mark.slow)])
def test_a_signal_lets_the_running_answer_finish_and_exits_0(tmp_path: Path, name: str) -> None:
    with server_process(tmp_path) as (process, url):
        with running_stream(url, "slow") as lines:
            process.send_signal(signal.Signals[name])
            assert list(lines)[-2:] == ["data: [DONE]", ""]

        assert process.wait(60) == 0


@pytest.mark.slow
@pytest.mark.process
def test_an_answer_that_does_not_end_is_cut_at_the_limit(tmp_path: Path) -> None:
    with server_process(tmp_path, drain_s=0.2) as (process, url):
        with running_stream(url, "endless") as lines:
            process.terminate()
            assert "engine_unavailable" in next(line for line in lines if '"error"' in line)
            with pytest.raises(httpx.RemoteProtocolError):
                list(lines)

        assert process.wait(60) == 0


@pytest.mark.slow
@pytest.mark.process
def test_a_killed_engine_is_replaced_and_the_port_stays_open(tmp_path: Path) -> None:
    with server_process(tmp_path) as (process, url):
        died = httpx.post(f"{url}/v1/chat/completions", json=asking("die"), timeout=60)
        assert died.status_code == 503
        with httpx.Client(base_url=url) as client:
            while client.get("/readyz").status_code != 200:
                assert process.poll() is None
            answer = client.post("/v1/chat/completions", json=asking("hi"), timeout=60)

        assert answer.json()["choices"][0]["message"]["content"] == "hello"


def test_a_port_in_use_is_named(tmp_path: Path) -> None:
    with listen("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(PortInUse, match=f"port {port} on 127.0.0.1 is in use"):
            listen("127.0.0.1", port)


def test_the_kernel_holds_little_for_a_client_that_does_not_read() -> None:
    with listen("127.0.0.1", 0) as listener:
        held = listener.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
    assert SEND_BUFFER_BYTES <= held <= 2 * SEND_BUFFER_BYTES


def test_an_address_that_is_not_ours_is_a_configuration_error() -> None:
    with pytest.raises(ConfigError, match="cannot listen on 192.0.2.1:0"):
        listen("192.0.2.1", 0)


def test_the_port_is_bound_before_the_model_is_looked_at(tmp_path: Path) -> None:
    with listen("127.0.0.1", 0) as listener:
        settings = ServerSettings(MODEL_ID, tmp_path, 4096, port=listener.getsockname()[1])
        with pytest.raises(PortInUse):
            run(settings)


def test_a_folder_without_a_tokenizer_cannot_be_served(tmp_path: Path) -> None:
    with pytest.raises(ModelFolderError, match="tokenizer.json"):
        build_service(ServerSettings(MODEL_ID, tmp_path, 4096))


def test_the_engine_is_told_what_to_load(tmp_path: Path) -> None:
    settings = ServerSettings(MODEL_ID, tmp_path, 4096, max_rows=3, fake_script=tmp_path / "x")

    assert engine_command(settings) == [
        sys.executable,
        *("-P", "-m", "verger.engine"),
        *("--model", str(tmp_path), "--model-id", MODEL_ID, "--max-rows", "3"),
        *("--target-itl-ms", "250.0", "--kv-bytes", "0"),
        *("--fake", str(tmp_path / "x")),
    ]


@pytest.mark.parametrize("is_cautious", [True, False])
def test_the_engine_is_told_to_be_cautious(tmp_path: Path, is_cautious: bool) -> None:
    write_model_folder(tmp_path)
    settings = ServerSettings(MODEL_ID, tmp_path, 4096)
    command = engine_command(settings, is_cautious=is_cautious)
    assert ("--cautious" in command) is is_cautious
    start = Start(StartReason.POWER, is_cautious)
    assert build_service(settings, start).start == start


def test_the_engine_is_told_of_a_log_of_its_own(tmp_path: Path) -> None:
    file = LogFile(tmp_path / "verger.log", 1 << 20, 3)
    settings = ServerSettings(MODEL_ID, tmp_path, 4096, log_file=file)

    assert engine_command(settings)[-6:] == [
        *("--log-file", str(tmp_path / "verger-engine.log")),
        *("--log-bytes", "1048576", "--log-kept-files", "3"),
    ]


@pytest.mark.parametrize("off", [{"engine.disk_gib": 0.0}, {"engine.prefix_cache": False}])
def test_what_the_configuration_makes_of_memory_and_disk(
    verger_home: Path, off: dict[str, object]
) -> None:
    choice = ModelChoice("m", ModelFolder(verger_home, 4096, 1), model=None)
    flags = {"engine.kv_gib": 1.5, "engine.disk_daily_gib": 1e-12, "engine.target_itl_ms": 99.0}
    settings = settings_for(load_config(flags, environ={}), choice, fake=None)

    assert (settings.target_itl_ms, settings.kv_bytes) == (99.0, 3 * 2**29)
    assert settings.has_prefix_cache
    assert settings.cache_dir == verger_home / "cache"
    assert (settings.disk_bytes, settings.disk_daily_bytes) == (20 * 2**30, 1)
    without = settings_for(load_config(off, environ={}), choice, fake=None)
    assert without.cache_dir is None
    assert without.has_prefix_cache is ("engine.disk_gib" in off)
    assert without.kv_bytes == 0


def test_the_engine_is_told_what_it_may_use(tmp_path: Path) -> None:
    settings = ServerSettings(
        MODEL_ID,
        tmp_path,
        4096,
        target_itl_ms=100,
        kv_bytes=7,
        has_prefix_cache=False,
        cache_dir=tmp_path / "cache",
        disk_bytes=8,
        disk_daily_bytes=9,
    )
    command = engine_command(settings)

    assert command[command.index("--target-itl-ms") :] == [
        *("--target-itl-ms", "100", "--kv-bytes", "7", "--no-prefix-cache"),
        *("--cache-dir", str(tmp_path / "cache"), "--disk-bytes", "8", "--disk-daily-bytes", "9"),
    ]


@pytest.mark.anyio
async def test_an_engine_that_can_never_start_ends_the_server(tmp_path: Path) -> None:
    async with running_gateway(tmp_path) as gateway:
        engine = await gateway.next_engine()
        await engine.greeted.wait()
        engine.send(Fatal("the weights are damaged", is_permanent=True))
        engine.die()
        await gateway.serving

        assert gateway.server.exit_code == EXIT_CANNOT_START


@pytest.mark.anyio
async def test_a_drain_turns_readiness_red_at_once(tmp_path: Path) -> None:
    async with ready_gateway(tmp_path) as (gateway, engine):
        gateway.server.ask_to_exit()
        assert (await gateway.http.get("/readyz")).status_code == 503
