"""`verger serve`: configuration and catalogue become ServerSettings; the gateway does the rest."""

import logging
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from verger import log, paths
from verger.catalogue import AbsentModel, ModelChoice, find_model, load_catalogue
from verger.cli.exchange import is_cut_off
from verger.cli.machine import has_engine, is_trial, machine_memory, model_places
from verger.config import Config, LogConfig, is_loopback, load_config
from verger.errors import NoKeys, StartupError
from verger.gateway.database import database
from verger.gateway.keys import count_keys, has_ever_had_keys

if TYPE_CHECKING:
    from verger.gateway.fresh_settings import FreshSettings


def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on; 0 picks one.")] = None,
    model: Annotated[
        str | None,
        typer.Option(help="A model of `verger models`, a folder, or auto: the largest that fits."),
    ] = None,
    max_rows: Annotated[
        int | None, typer.Option(help="How many answers are generated at once.")
    ] = None,
    tls_cert: Annotated[
        str | None, typer.Option(help="Serve over TLS with this certificate, a PEM file.")
    ] = None,
    tls_key: Annotated[
        str | None, typer.Option(help="The certificate's private key, a PEM file.")
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(help="Read this file instead of config.toml in VERGER_HOME."),
    ] = None,
    insecure_no_auth: Annotated[
        bool, typer.Option(help="Ask nobody for a key, whoever can reach the address.")
    ] = False,
    fake: Annotated[
        Path | None, typer.Option(hidden=True, help="Play this script instead of a model.")
    ] = None,
) -> None:
    """Serve the OpenAI API, by default at http://127.0.0.1:8374/v1, until interrupted."""
    # It waits until the server listens for it, instead of ending the process.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    flags = {
        "server.host": host,
        "server.port": port,
        "server.tls_cert": tls_cert,
        "server.tls_key": tls_key,
        "engine.model": model,
        "engine.max_rows": max_rows,
    }
    _serve(lambda: load_config(flags, file=config), fake, insecure_no_auth)


def _serve(read_config: Callable[[], Config], fake: Path | None, is_insecure: bool) -> NoReturn:
    loaded = read_config()
    if not has_engine():
        raise StartupError(
            "the engine is not installed: run scripts/serve, or pip install 'verger[engine]'"
        )
    if is_cut_off(paths.home()):
        raise StartupError(
            f"a `verger restore` of {paths.home()} was cut off: run it again, or `verger backup "
            "FILE`, which undoes it first"
        )
    choice = _choose(loaded)
    _say(_model_notice(choice))
    _say(_access_notice(loaded.server.host, is_insecure))
    # Imported late: the web stack costs every other command a quarter of a second.
    from verger.cli.server_settings import fresh_settings, log_file, settings_for
    from verger.gateway.server import run

    _open_log(loaded.log, log_file(loaded.log))

    def read_settings() -> "FreshSettings":
        return fresh_settings(loaded, read_config(), choice, fake, is_insecure)

    settings = settings_for(loaded, choice, fake, is_insecure)
    code = run(settings, read_settings, lambda: _is_there(loaded))
    if code is None:
        _start_anew()
    raise typer.Exit(code)


def _open_log(settings: LogConfig, log_file: log.LogFile | None) -> None:
    """Standard error is for what a crash prints, where there is a file for all else."""
    log.configure(log_file)
    if settings.crash_file:
        file = paths.in_home(settings.crash_file)
        try:
            log.trim(file)
        except OSError as error:
            reason = log.key_values(event="not_trimmed", file=file, reason=error.strerror)
            logging.getLogger("verger.cli").warning(reason)


def _say(notice: str | None) -> None:
    if notice is not None:
        print(f"verger: {notice}", file=sys.stderr)


def _model_notice(choice: ModelChoice | AbsentModel) -> str | None:
    if isinstance(choice, ModelChoice):
        return choice.notice
    return (
        f"no model to load yet: {choice.reason}. Until then requests are refused, or go to a cloud "
        "where they may; once it is there it is loaded by itself"
    )


def _is_there(config: Config) -> bool:
    """Whether there is by now a model to load."""
    try:
        return isinstance(_choose(config), ModelChoice)
    except StartupError:
        return False


def _start_anew() -> NoReturn:
    """The same command in the same process: whoever watches it sees no exit."""
    sys.stderr.flush()
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # noqa: S606 (no shell)


def _choose(config: Config) -> ModelChoice | AbsentModel:
    return find_model(
        config.engine.model,
        load_catalogue(paths.catalogue_dir()),
        model_places(),
        memory=machine_memory(),
        is_trial=is_trial(config, paths.home()),
    )


def _access_notice(host: str, is_insecure: bool) -> str | None:
    """Who is let in, where that is not only who has a key; raises NoKeys or DatabaseError."""
    if is_insecure:
        return f"INSECURE: whoever reaches {host} can use this server; it asks nobody for a key"
    with database(paths.database_file()) as connection:
        keys, has_had_keys = count_keys(connection), has_ever_had_keys(connection)
    if is_loopback(host):
        if has_had_keys:
            return None
        return "no key is asked for: only this machine can connect, and no key was made yet"
    if keys == 0:
        raise NoKeys(
            f"others can reach {host}, and nobody has a key: make one with `verger keys add NAME`, "
            "or listen on 127.0.0.1"
        )
    return None
