"""`verger serve`: configuration and catalogue become ServerSettings; the gateway does the rest."""

import logging
import math
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from verger import log, paths
from verger.catalogue import ModelChoice, SamplingDefaults, load_catalogue, resolve_model
from verger.cli.assumed import assumed_mac, shipped_and_fetched
from verger.cli.machine import has_engine, machine_memory, model_places
from verger.config import (
    SERVED_MODEL,
    Config,
    LogConfig,
    ServerConfig,
    SpillConfig,
    is_loopback,
    load_config,
    reloaded,
)
from verger.errors import ConfigError, NoKeys, StartupError
from verger.gateway.database import database
from verger.gateway.keys import count_keys, has_ever_had_keys
from verger.messages import Sampling

if TYPE_CHECKING:
    from verger.costs.prices import Snapshot
    from verger.gateway.fresh_settings import FreshSettings
    from verger.gateway.settings import ServerSettings, TlsFiles


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
    loaded = load_config(flags, file=config)
    if not has_engine():
        raise StartupError(
            "the engine is not installed: run scripts/serve, or pip install 'verger[engine]'"
        )
    choice = _choose(loaded)
    notices = [choice.notice, _access_notice(loaded.server.host, insecure_no_auth)]
    for notice in filter(None, notices):
        print(f"verger: {notice}", file=sys.stderr)
    _open_log(loaded.log)
    # Imported late: the web stack costs every other command a quarter of a second.
    from verger.gateway.server import run

    def read_settings() -> "FreshSettings":
        fresh = load_config(flags, file=config)
        return fresh_settings(loaded, fresh, choice, fake, insecure_no_auth)

    settings = settings_for(loaded, choice, fake, insecure_no_auth)
    raise typer.Exit(run(settings, read_settings))


def fresh_settings(
    running: Config, fresh: Config, choice: ModelChoice, fake: Path | None, is_insecure: bool
) -> "FreshSettings":
    """What SIGHUP makes of a configuration that was read again; the model stays."""
    from verger.gateway.fresh_settings import FreshSettings

    taken, needs_restart = reloaded(running, fresh)
    return FreshSettings(settings_for(taken, choice, fake, is_insecure), needs_restart)


def settings_for(
    config: Config, choice: ModelChoice, fake: Path | None, is_insecure: bool = False
) -> "ServerSettings":
    """What the gateway needs to know, and no more."""
    from verger.gateway.cors import origin_list
    from verger.gateway.hosts import host_list
    from verger.gateway.identity import instance_id
    from verger.gateway.providers import load_kinds, load_providers
    from verger.gateway.routing import Limits
    from verger.gateway.settings import ServerSettings
    from verger.lan.advertise import Backend

    engine, mac = config.engine, assumed_mac(config, choice.id)
    prices = shipped_and_fetched()
    has_disk = engine.prefix_cache and engine.disk_gib > 0
    return ServerSettings(
        model_id=choice.id,
        model_folder=choice.folder.path,
        context_tokens=choice.context_tokens,
        sampling=_sampling(choice.model.sampling if choice.model else SamplingDefaults()),
        aliases={
            name: choice.id if target == SERVED_MODEL else target
            for name, target in config.aliases.items()
        },
        providers=load_providers(
            config.providers, load_kinds(paths.providers_dir()), paths.home(), prices
        ),
        can_spill=config.spill.enabled,
        min_intelligence=_scored(config.spill, prices),
        cloud_budget_usd=config.spill.monthly_budget_usd,
        host=config.server.host,
        port=config.server.port,
        name=config.server.name,
        instance_id=instance_id(paths.instance_id_file()),
        bonjour=Backend(config.lan.bonjour),
        lan_interfaces=_listed(config.lan.interfaces),
        heartbeat_s=config.server.heartbeat_s,
        allowed_hosts=host_list(config.server.allowed_hosts),
        cors_origins=origin_list(config.server.cors_origins),
        tls=_tls_files(config.server),
        max_rows=engine.max_rows,
        target_itl_ms=engine.target_itl_ms,
        kv_bytes=_bytes(engine.kv_gib),
        has_prefix_cache=engine.prefix_cache,
        cache_dir=paths.cache_dir() if has_disk else None,
        disk_bytes=_bytes(engine.disk_gib),
        disk_daily_bytes=_bytes(engine.disk_daily_gib),
        database_file=paths.database_file(),
        admin_socket=paths.admin_socket(),
        run_file=paths.run_file(),
        is_insecure=is_insecure,
        prices=prices,
        machine=None if mac is None else mac.assumed.machine(),
        limits=Limits(config.spill.ttft_objective_s, config.spill.max_wait_s),
        log_file=_log_file(config.log),
        fake_script=fake,
    )


def _open_log(settings: LogConfig) -> None:
    """Standard error is for what a crash prints, where there is a file for all else."""
    log.configure(_log_file(settings))
    if settings.crash_file:
        file = paths.in_home(settings.crash_file)
        try:
            log.trim(file)
        except OSError as error:
            reason = log.key_values(event="not_trimmed", file=file, reason=error.strerror)
            logging.getLogger("verger.cli").warning(reason)


def _log_file(settings: LogConfig) -> log.LogFile | None:
    if not settings.file:
        return None
    return log.LogFile(paths.in_home(settings.file), settings.max_mib << 20, settings.kept_files)


def _scored(spill: SpillConfig, prices: "Snapshot") -> str:
    """The floor that a provider's model has to reach; without a score nothing could."""
    minimum = spill.min_intelligence
    if spill.enabled and prices.index(minimum) is None:
        raise ConfigError(
            f"spill.min_intelligence = {minimum!r} has no score in any index; name one of the "
            "models that `verger providers rank` lists"
        )
    return minimum


def _tls_files(server: ServerConfig) -> "TlsFiles | None":
    from verger.gateway.settings import TlsFiles

    if not (server.tls_cert or server.tls_key):
        return None
    if not (server.tls_cert and server.tls_key):
        raise ConfigError("tls_cert and tls_key belong together: give both, or neither")
    return TlsFiles(Path(server.tls_cert).expanduser(), Path(server.tls_key).expanduser())


def _choose(config: Config) -> ModelChoice:
    return resolve_model(
        config.engine.model,
        load_catalogue(paths.catalogue_dir()),
        model_places(),
        memory=machine_memory(),
        is_loopback=is_loopback(config.server.host),
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


def _listed(text: str) -> tuple[str, ...]:
    """What stands between commas."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _bytes(gib: float) -> int:
    """Rounded up: what is not 0 stays so."""
    return math.ceil(gib * 2**30)


def _sampling(defaults: SamplingDefaults) -> Sampling:
    return Sampling(
        temperature=defaults.temperature,
        top_p=defaults.top_p,
        top_k=defaults.top_k,
        min_p=defaults.min_p,
    )
