"""`python -P -m verger.engine`: the engine process, started by the gateway and by nobody else.

Takes over the inherited socket, waits for Hello, loads the model, says Ready and runs the loop.
It ends with the gateway (EOF), when told to drain, or with one Fatal frame. Exit codes: 0 drained
or the gateway is gone, 1 failed, 3 cannot start and a restart would not help.
"""

import argparse
import logging
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from verger import log
from verger.engine.fake import FakeRunner
from verger.engine.loop import Loop
from verger.engine.scheduler import (
    MAX_ROWS,
    PREFILL_TOKENS_ALONE,
    PREFILL_TOKENS_SHARED,
    Scheduler,
)
from verger.engine.steps import Runner
from verger.engine.transport import Connection, ConnectionClosed, ProtocolError
from verger.errors import EXIT_CANNOT_START, StartupError
from verger.messages import PROTOCOL_VERSION, Fatal, Hello, Ready

HELLO_WAIT_S = 60.0
EXIT_FAILED = 1

logger = logging.getLogger("verger.engine")


def main(arguments: Sequence[str]) -> int:
    """Run the engine until it ends; the exit code."""
    # Ctrl-C and a service manager's SIGTERM reach the whole process group. The gateway decides
    # what they mean: it drains the engine, which must live on until then.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    log.configure()
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


def _run(connection: Connection, options: argparse.Namespace) -> None:
    hello = _await_hello(connection)
    started_s = time.monotonic()
    runner = _load(options, hello)
    connection.send([_ready(options, runner, time.monotonic() - started_s)])
    scheduler = Scheduler(
        context_tokens=runner.context_tokens,
        max_rows=options.max_rows,
        prefill_tokens_alone=options.prefill_chunk,
        prefill_tokens_shared=min(options.prefill_chunk, PREFILL_TOKENS_SHARED),
    )
    Loop(connection, runner, scheduler, time.monotonic).run()


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
        return FakeRunner.load(options.fake, options.model)
    try:
        # Only here: MLX takes long to import and is absent without the extra.
        from verger.engine.device.runner import MlxRunner
    except ImportError as error:
        raise StartupError(
            f"The engine cannot be loaded: {error}. Install it with: pip install 'verger[engine]'"
        ) from error
    return MlxRunner.load(options.model, hello, options.max_rows)


def _ready(options: argparse.Namespace, runner: Runner, load_s: float) -> Ready:
    return Ready(
        version=PROTOCOL_VERSION,
        model_id=options.model_id,
        vocabulary_size=runner.vocabulary_size,
        context_tokens=runner.context_tokens,
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
        default=PREFILL_TOKENS_ALONE,
        help="the most prompt tokens a step",
    )
    parser.add_argument("--fake", type=Path, help="play this script instead of the model")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
