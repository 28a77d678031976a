"""What the gateway is told: settings, from the configuration and the choice of a model.

Called by `verger serve` at its start and at SIGHUP; serves nothing itself. Imported late: with it
comes the web stack, which costs every other command a quarter of a second.
"""

import math
from pathlib import Path

from verger import log, paths
from verger.catalogue import AbsentModel, ModelChoice, SamplingDefaults
from verger.cli.assumed import assumed_mac, shipped_and_fetched
from verger.cli.machine import is_trial
from verger.config import (
    SERVED_MODEL,
    Config,
    LogConfig,
    ServerConfig,
    SpillConfig,
    reloaded,
)
from verger.costs.prices import Snapshot
from verger.errors import ConfigError
from verger.gateway.cors import origin_list
from verger.gateway.fresh_settings import FreshSettings
from verger.gateway.hosts import host_list
from verger.gateway.identity import instance_id
from verger.gateway.providers import load_kinds, load_providers
from verger.gateway.routing import Limits
from verger.gateway.settings import ServerSettings, TlsFiles
from verger.lan.advertise import Backend
from verger.messages import Sampling

Choice = ModelChoice | AbsentModel


def fresh_settings(
    running: Config, fresh: Config, choice: Choice, fake: Path | None, is_insecure: bool
) -> FreshSettings:
    """What SIGHUP makes of a configuration that was read again; the model stays."""
    taken, needs_restart = reloaded(running, fresh)
    return FreshSettings(settings_for(taken, choice, fake, is_insecure), needs_restart)


def settings_for(
    config: Config, choice: Choice, fake: Path | None, is_insecure: bool = False
) -> ServerSettings:
    """What the gateway needs to know, and no more."""
    engine, mac = config.engine, assumed_mac(config, choice.id)
    prices = shipped_and_fetched()
    has_disk = engine.prefix_cache and engine.disk_gib > 0
    return ServerSettings(
        model_id=choice.id,
        model_folder=choice.path,
        context_tokens=choice.context_tokens,
        sampling=_sampling(choice.model.sampling if choice.model else SamplingDefaults()),
        stand_in_tokenizer=_stand_in(choice),
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
        log_file=log_file(config.log),
        gives_up=is_trial(config, paths.home()),
        fake_script=fake,
    )


def log_file(settings: LogConfig) -> log.LogFile | None:
    """Where the log goes; None: standard error."""
    if not settings.file:
        return None
    return log.LogFile(paths.in_home(settings.file), settings.max_mib << 20, settings.kept_files)


def _scored(spill: SpillConfig, prices: Snapshot) -> str:
    """The floor that a provider's model has to reach; without a score nothing could."""
    minimum = spill.min_intelligence
    if spill.enabled and prices.index(minimum) is None:
        raise ConfigError(
            f"spill.min_intelligence = {minimum!r} has no score in any index; name one of the "
            "models that `verger providers rank` lists"
        )
    return minimum


def _tls_files(server: ServerConfig) -> TlsFiles | None:

    if not (server.tls_cert or server.tls_key):
        return None
    if not (server.tls_cert and server.tls_key):
        raise ConfigError("tls_cert and tls_key belong together: give both, or neither")
    return TlsFiles(Path(server.tls_cert).expanduser(), Path(server.tls_key).expanduser())


def _listed(text: str) -> tuple[str, ...]:
    """What stands between commas."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _bytes(gib: float) -> int:
    """Rounded up: what is not 0 stays so."""
    return math.ceil(gib * 2**30)


def _stand_in(choice: Choice) -> Path | None:
    """nano's tokenizer, as long as there is no other: it spells the same text with about twice as
    many tokens, so that a reservation is too high, not low."""
    return None if isinstance(choice, ModelChoice) else paths.nano_dir() / "tokenizer.json"


def _sampling(defaults: SamplingDefaults) -> Sampling:
    return Sampling(
        temperature=defaults.temperature,
        top_p=defaults.top_p,
        top_k=defaults.top_k,
        min_p=defaults.min_p,
    )
