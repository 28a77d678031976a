"""Runs the gateway: binds the port, serves until told to stop, drains, returns an exit code.

Called by `verger serve`. The port is bound first, so that a second server gives up before it
loads a model; the engine loads while the port already answers (`/readyz` is red meanwhile).

    SIGTERM, SIGINT → /readyz red, withdrawn from the network, no new connections, running answers
                      finish for up to drain_s, what still runs then fails with an error event;
                      exit 0
    SIGINT again    → exit at once
    weights found   → as SIGTERM, but to be run anew: only in a server that had none
    SIGHUP          → configuration and certificate are read again: see reload.py
"""

import asyncio
import errno
import logging
import math
import resource
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import uvicorn

from verger import __version__
from verger.errors import (
    EXIT_CANNOT_START,
    ConfigError,
    EngineUnavailable,
    ModelFolderError,
    Overloaded,
    PortInUse,
)
from verger.formats.dates import PinnedDates
from verger.formats.specials import Special
from verger.formats.vocabulary import Vocabulary
from verger.gateway import sse
from verger.gateway.acceptor import MAX_CLIENT_CONNECTIONS, MAX_CONNECTIONS, Acceptor, Crowd
from verger.gateway.admin import AdminServer
from verger.gateway.advertising import Advertising
from verger.gateway.app import create_app
from verger.gateway.cloud import Cloud
from verger.gateway.connection import CLOSE_S, KEEP_ALIVE_S, Connection, raw_reply
from verger.gateway.engine_client import EngineClient, EngineState, RestartLimits
from verger.gateway.fresh_settings import FreshSettings, ReadSettings, settings_part
from verger.gateway.hosts import machine_names
from verger.gateway.run_record import RunRecord, Start, read_boot_id
from verger.gateway.service import Service
from verger.gateway.settings import ServerSettings
from verger.gateway.tls import tls_context
from verger.gateway.weights import AreThere, wait_for_weights
from verger.log import key_values
from verger.messages import PROTOCOL_VERSION, Hello

logger = logging.getLogger("verger.gateway")

BACKLOG = 1024
"""Connections that wait to be accepted; macOS allows 128 of them."""
SEND_BUFFER_BYTES = 128 * 1024
"""In the kernel, per connection: left to itself it takes megabytes for a client that does not read,
so that such a client would hardly ever be noticed."""
SPARE_FILES = 256
"""File descriptors for all that is no client's connection."""
MAX_LOAD_S = 900.0
UNKNOWN = Start()
"""Why a server was started of which no record is kept."""

# The log line of the request already says that its stream was cut off, and why.
_CUT_OFF = "ASGI callable returned without completing response."


def run(
    settings: ServerSettings,
    read_settings: ReadSettings | None = None,
    are_weights_there: AreThere = lambda: False,
) -> int | None:
    """Serve until a signal; returns the process's exit code. Raises StartupError.

    `read_settings` is for SIGHUP; without it only the certificate is read again. A server without
    weights asks again and again whether they are there; if they are it ends, with None, so that it
    is started anew with all that follows from them.
    """
    raise_open_files(MAX_CONNECTIONS + SPARE_FILES)
    with listen(settings.host, settings.port) as listener:
        record = None if settings.run_file is None else RunRecord(settings.run_file)
        start = Start() if record is None else record.begin(read_boot_id())
        logger.info(key_values(event="started", version=__version__, reason=start.reason.value))
        if start.is_cautious:
            logger.warning("event=cautious_limits")
        service = build_service(settings, start)
        read = read_settings or partial(FreshSettings, settings)
        service.reloader.add("configuration", settings_part(service, read))
        service.accounts.ledger.open()
        server = GatewayServer(service, are_weights_there=are_weights_there)
        host, port = listener.getsockname()[:2]
        scheme = "http" if service.tls is None else "https"
        logger.info(key_values(event="listening", url=f"{scheme}://{_bracketed(host)}:{port}/v1"))
        server.run(sockets=[listener])
        if record is not None:
            record.end(server.exit_code)
        return None if server.has_found_weights else server.exit_code


def listen(host: str, port: int) -> socket.socket:
    """A socket that already listens; raises PortInUse or ConfigError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family, backlog=BACKLOG)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise PortInUse(
                f"port {port} on {host} is in use; stop what listens there, or choose another "
                "with --port"
            ) from None
        raise ConfigError(f"cannot listen on {host}:{port}: {error.strerror}") from None
    # Connections inherit all of it. asyncio sets TCP_NODELAY for its own sockets only: without it a
    # reply's body waits 40 ms for the client to acknowledge the head.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
    listener.setblocking(False)
    return listener


def raise_open_files(wanted: int) -> None:
    """As far as the system lets us: macOS grants 256 to those who do not ask for more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < limit:
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))


def build_service(settings: ServerSettings, start: Start = UNKNOWN) -> Service:
    """Read the vocabulary and the certificate, describe the engine; starts nothing."""
    try:
        tokenizer_json = settings.tokenizer_file.read_bytes()
    except OSError as error:
        raise ModelFolderError(f"cannot read {error.filename}: {error.strerror}") from None
    vocabulary = Vocabulary.from_file_bytes(tokenizer_json)
    hello = Hello(
        version=PROTOCOL_VERSION,
        message_id=vocabulary.special(Special.MESSAGE.value),
        special_ids=sorted(vocabulary.specials),
    )
    command = engine_command(settings, is_cautious=start.is_cautious)
    limits = RestartLimits(gives_up=settings.gives_up)
    engine = EngineClient(command, hello, limits, no_weights=settings.no_weights)
    return Service(
        settings,
        vocabulary,
        engine,
        PinnedDates(),
        start=start,
        cloud=Cloud(settings.providers),
        tls=None if settings.tls is None else tls_context(settings.tls),
        own_names=set(machine_names()),
    )


def engine_command(settings: ServerSettings, *, is_cautious: bool = False) -> list[str]:
    """The engine's command line. -P: a folder named verger in the working directory is not us."""
    command = [sys.executable, "-P", "-m", "verger.engine"]
    command += ["--model", str(settings.model_folder), "--model-id", settings.model_id]
    command += ["--max-rows", str(settings.max_rows)]
    command += ["--target-itl-ms", str(settings.target_itl_ms)]
    command += ["--kv-bytes", str(settings.kv_bytes)]
    if is_cautious:
        command += ["--cautious"]
    if not settings.has_prefix_cache:
        command += ["--no-prefix-cache"]
    if settings.cache_dir is not None:
        command += ["--cache-dir", str(settings.cache_dir)]
        command += ["--disk-bytes", str(settings.disk_bytes)]
        command += ["--disk-daily-bytes", str(settings.disk_daily_bytes)]
    if settings.log_file is not None:
        file = settings.log_file.beside("engine")
        command += ["--log-file", str(file.path), "--log-bytes", str(file.max_bytes)]
        command += ["--log-kept-files", str(file.kept_files)]
    if settings.fake_script is not None:
        command += ["--fake", str(settings.fake_script)]
    return command


class GatewayServer(uvicorn.Server):
    """uvicorn's server with our signals, our drain, and an exit code."""

    def __init__(
        self,
        service: Service,
        advertising: Advertising | None = None,
        are_weights_there: AreThere = lambda: False,
    ) -> None:
        sse.drain_streams()
        logging.getLogger("uvicorn.error").addFilter(_is_news)
        self._service = service
        self._advertising = advertising or Advertising(service)
        self._has_started = asyncio.Event()
        self._accepting: list[asyncio.Task[None]] = []
        self.crowd = Crowd(MAX_CONNECTIONS, MAX_CLIENT_CONNECTIONS)
        self.exit_code = 0
        self.has_found_weights = False
        self._are_weights_there = are_weights_there
        super().__init__(
            uvicorn.Config(
                create_app(service),
                log_config=None,
                access_log=False,
                backlog=BACKLOG,
                lifespan="on",
                proxy_headers=False,
                server_header=False,
                timeout_graceful_shutdown=math.ceil(service.settings.drain_s + CLOSE_S),
                timeout_keep_alive=KEEP_ALIVE_S,
                ws="none",
            )
        )

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve, and follow the engine's start beside it."""
        assert sockets
        self._advertising.start(*sockets[0].getsockname()[:2])
        admin = _admin_server(self._service.settings)
        try:
            async with asyncio.TaskGroup() as tasks:
                starting = tasks.create_task(self._follow_start())
                if admin is not None:
                    tasks.create_task(admin.run_beside(), name="admin socket")
                self._accepting = [tasks.create_task(self._accept(sock)) for sock in sockets]
                await super().serve(sockets)
                starting.cancel()
                if admin is not None:
                    admin.stop()
        finally:
            await self._advertising.stop()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """uvicorn's, except that connections are accepted by us."""
        await super().startup([])
        self._has_started.set()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Let running answers finish; the engine stops with the last of them. Nobody new shall
        come meanwhile, so the network is told first."""
        await self._advertising.stop()
        for accepting in self._accepting:
            accepting.cancel()
        await asyncio.gather(*self._accepting, return_exceptions=True)
        async with asyncio.TaskGroup() as tasks:
            stopping = tasks.create_task(self._service.engine.stop(self._service.settings.drain_s))
            await super().shutdown(sockets)
            if self.force_exit:
                stopping.cancel()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Unlike uvicorn's own, does not raise the signal again afterwards: a drain exits 0.

        The CLI holds SIGHUP back until now, and again afterwards, when nothing would handle it.
        """
        loop = asyncio.get_running_loop()
        actions = {
            signal.SIGTERM: self.ask_to_exit,
            signal.SIGINT: self.ask_to_exit,
            signal.SIGHUP: self._service.reloader.reload,
        }
        for number, action in actions.items():
            loop.add_signal_handler(number, action)
        mask = signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})
        try:
            yield
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            for number in actions:
                loop.remove_signal_handler(number)

    def ask_to_exit(self) -> None:
        """What a signal does: drain, and the second time give up what still runs."""
        logger.info(key_values(event="exit_asked", is_draining=self.should_exit))
        self.force_exit = self.should_exit and not self.has_found_weights
        self.has_found_weights = False  # It is to end, not to be run anew.
        self._drain()

    def _drain(self) -> None:
        self._service.is_draining = True
        self.should_exit = True

    async def _accept(self, listener: socket.socket) -> None:
        await self._has_started.wait()
        refusal = raw_reply(Overloaded("Too many connections are open; try again later."))
        acceptor = Acceptor(self.crowd, self._new_connection, lambda: self._service.tls, refusal)
        await acceptor.accept(listener)

    def _new_connection(self, on_lost: Callable[[], None]) -> Connection:
        return Connection(self.config, self.server_state, self.lifespan.state, on_lost)

    async def _follow_start(self) -> None:
        """A server whose engine never starts is of no use: it exits and says why."""
        try:
            ready = await self._service.engine.wait_ready(MAX_LOAD_S)
        except EngineUnavailable as error:
            state = self._service.engine.state
            if state is EngineState.NO_WEIGHTS:
                await self._await_weights()
                return
            if state is EngineState.SAFE_MODE:
                # To exit would only have it loaded, and end, again: the cloud can be served.
                return
            logger.error(key_values(event="cannot_start", reason=error.message))
            self.exit_code = EXIT_CANNOT_START
            self.should_exit = True
        else:
            logger.info(
                key_values(
                    event="ready",
                    model=self._service.settings.model_id,
                    device=ready.device,
                    load_s=ready.load_s,
                )
            )

    async def _await_weights(self) -> None:
        logger.warning(key_values(event="no_weights", reason=self._service.settings.no_weights))
        await wait_for_weights(self._are_weights_there)
        if not self.should_exit:
            self.has_found_weights = True
            self._drain()


def _admin_server(settings: ServerSettings) -> AdminServer | None:
    if settings.admin_socket is None or settings.database_file is None:
        return None
    return AdminServer(settings.admin_socket, settings.database_file)


def _is_news(record: logging.LogRecord) -> bool:
    return record.msg != _CUT_OFF


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
