"""`python -P -m verger.engine`: the engine process, started by the gateway and by nobody else.

Takes over the inherited socket, waits for Hello, loads the model, says Ready and runs the loop.
It ends with the gateway (EOF), when told to drain, or with one Fatal frame. Exit codes: 0 drained
or the gateway is gone, 1 failed, 3 cannot start and a restart would not help.
"""

import argparse
import logging
import math
import signal
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from verger import log
from verger.engine.cache_disk import CacheDisk
from verger.engine.disk import DiskTier
from verger.engine.fake import FakeRunner
from verger.engine.loop import Loop
from verger.engine.pacing import MAX_CHUNK_TOKENS, Pacer
from verger.engine.places import BLOCK_TOKENS
from verger.engine.pressure import system_pressure
from verger.engine.scheduler import MAX_ROWS, Scheduler
from verger.engine.steps import Runner
from verger.engine.transport import Connection, ConnectionClosed, ProtocolError
from verger.errors import EXIT_CANNOT_START, StartupError
from verger.messages import PROTOCOL_VERSION, Fatal, Hello, Ready

HELLO_WAIT_S = 60.0
MIN_CONTEXT_TOKENS = BLOCK_TOKENS
"""Less than a block of KV serves nobody."""
CAUTIOUS_DIVISOR = 2
"""So much less KV after the machine went down, which GPU memory may have caused ..."""
CAUTIOUS_CHUNK_TOKENS = 512
"""... and no larger chunks."""
EXIT_FAILED = 1

logger = logging.getLogger("verger.engine")


def main(arguments: Sequence[str]) -> int:
    """Run the engine until it ends; the exit code."""
    # Ctrl-C, a service manager's SIGTERM and a terminal's SIGHUP reach the whole process group. The
    # gateway decides what they mean: it may drain the engine, which must live on until then.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    options = _parse(arguments)
    connection = Connection.from_fd(options.fd)
    try:
        return _serve(connection, options)
    except ConnectionClosed:
        return 0
    finally:
        connection.close()


def _serve(connection: Connection, options: argparse.Namespace) -> int:
    """The engine's outermost edge: whatever ends the loop becomes one Fatal."""
    try:
        log.configure(_log_file(options))
        _run(connection, options)
    except ConnectionClosed:
        raise
    except StartupError as error:
        connection.send([Fatal(str(error), is_permanent=True)])
        return EXIT_CANNOT_START
    except Exception as error:
        logger.exception("event=engine_failed")
        connection.send([Fatal(f"{type(error).__name__}: {error}")])
        return EXIT_FAILED
    return 0


def _log_file(options: argparse.Namespace) -> log.LogFile | None:
    if options.log_file is None:
        return None
    return log.LogFile(options.log_file, options.log_bytes, options.log_kept_files)


def _run(connection: Connection, options: argparse.Namespace) -> None:
    hello = _await_hello(connection)
    started_s = time.monotonic()
    runner = _load(options, hello)
    scheduler = Scheduler(
        runner.kv,
        context_tokens=runner.context_tokens,
        limit_bytes=_kv_limit_bytes(options, runner),
        pacer=Pacer(options.target_itl_ms / 1000, _chunk_tokens(options)),
        caches=options.prefix_cache,
        fingerprint=runner.fingerprint,
    )
    if scheduler.context_tokens < MIN_CONTEXT_TOKENS:
        raise StartupError(_too_small(scheduler, runner))
    disk = _open_disk(options, runner, scheduler)
    load_s = time.monotonic() - started_s
    connection.send([_ready(options, runner, scheduler.context_tokens, load_s)])
    Loop(connection, runner, scheduler, time.monotonic, disk, system_pressure()).run()
    if disk is not None:
        disk.close(time.sleep)


def _kv_limit_bytes(options: argparse.Namespace, runner: Runner) -> int:
    limit_bytes: int = options.kv_bytes or runner.free_bytes
    if not options.cautious:
        return limit_bytes
    # Caution must not keep a machine from starting that has just enough.
    least_bytes = runner.kv.ring_bytes + MIN_CONTEXT_TOKENS * runner.kv.token_bytes
    return max(limit_bytes // CAUTIOUS_DIVISOR, min(limit_bytes, least_bytes))


def _chunk_tokens(options: argparse.Namespace) -> int:
    tokens: int = options.prefill_chunk
    return min(tokens, CAUTIOUS_CHUNK_TOKENS) if options.cautious else tokens


def _open_disk(
    options: argparse.Namespace, runner: Runner, scheduler: Scheduler
) -> CacheDisk | None:
    if options.cache_dir is None or not options.prefix_cache:
        return None
    tier = DiskTier(
        options.cache_dir,
        runner.fingerprint,
        options.disk_bytes,
        options.disk_daily_bytes,
        today=lambda: datetime.now(UTC).date().isoformat(),
    )
    disk = CacheDisk(tier, scheduler.kv, runner.export, time.monotonic)
    disk.open()
    return disk


def _await_hello(connection: Connection) -> Hello:
    deadline_s = time.monotonic() + HELLO_WAIT_S
    while (wait_s := deadline_s - time.monotonic()) > 0:
        match connection.receive(wait_s):
            case []:
                continue
            case [Hello() as hello]:
                return _check_version(hello)
            case frames:
                names = ", ".join(type(frame).__name__ for frame in frames)
                raise ProtocolError(f"{names} instead of one Hello")
    raise ProtocolError(f"no Hello within {HELLO_WAIT_S:.0f} s")


def _check_version(hello: Hello) -> Hello:
    if hello.version != PROTOCOL_VERSION:
        raise StartupError(
            f"The gateway speaks protocol version {hello.version}, the engine "
            f"{PROTOCOL_VERSION}: they are of different releases. Restart verger."
        )
    return hello


def _load(options: argparse.Namespace, hello: Hello) -> Runner:
    if options.fake is not None:
        return FakeRunner.load(options.fake, options.model, options.max_rows)
    try:
        # Only here: MLX takes long to import and is absent without the extra.
        from verger.engine.device.runner import MlxRunner
    except ImportError as error:
        raise StartupError(
            f"The engine cannot be loaded: {error}. Install it with: pip install 'verger[engine]'"
        ) from error
    return MlxRunner.load(options.model, hello, options.max_rows)


def _too_small(scheduler: Scheduler, runner: Runner) -> str:
    kv = runner.kv
    needed = kv.ring_bytes + MIN_CONTEXT_TOKENS * kv.token_bytes
    return (
        f"{scheduler.kv.limit_bytes / 2**20:.0f} MiB are too little for KV: {kv.max_rows} rows "
        f"need at least {math.ceil(needed / 2**20)} MiB. Raise engine.kv_gib, lower "
        "engine.max_rows, or serve a smaller model."
    )


def _ready(
    options: argparse.Namespace, runner: Runner, context_tokens: int, load_s: float
) -> Ready:
    return Ready(
        version=PROTOCOL_VERSION,
        model_id=options.model_id,
        vocabulary_size=runner.vocabulary_size,
        context_tokens=context_tokens,
        max_rows=options.max_rows,
        device=runner.device,
        load_s=load_s,
    )


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="verger.engine", allow_abbrev=False)
    parser.add_argument("--fd", type=int, required=True, help="the inherited socket")
    parser.add_argument("--model", type=Path, required=True, help="the model's folder")
    parser.add_argument("--model-id", required=True, help="the name to report in Ready")
    parser.add_argument("--max-rows", type=int, default=MAX_ROWS)
    parser.add_argument(
        "--prefill-chunk",
        type=int,
        default=MAX_CHUNK_TOKENS,
        help="the most prompt tokens a step",
    )
    parser.add_argument(
        "--target-itl-ms", type=float, default=250.0, help="what a step beside streams may take"
    )
    parser.add_argument("--kv-bytes", type=int, default=0, help="for all KV; 0: what is free")
    parser.add_argument("--cautious", action="store_true", help="half of the KV, small chunks")
    parser.add_argument("--no-prefix-cache", dest="prefix_cache", action="store_false")
    parser.add_argument("--cache-dir", type=Path, help="where prefixes are kept; none: nowhere")
    parser.add_argument("--disk-bytes", type=int, default=0, help="the most in that folder")
    parser.add_argument("--disk-daily-bytes", type=int, default=0, help="the most written a day")
    parser.add_argument("--log-file", type=Path, help="where to log; none: standard error")
    parser.add_argument("--log-bytes", type=int, default=0, help="the most in that file; 0: no end")
    parser.add_argument("--log-kept-files", type=int, default=0, help="how many are kept before it")
    parser.add_argument("--fake", type=Path, help="play this script instead of the model")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
