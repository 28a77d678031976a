"""The configuration: built-in default < config.toml < VERGER_* environment < command-line flag.

Called once by the CLI, which passes the frozen Config down. A setting is named `section.key`
(`server.port`), its variable VERGER_SECTION_KEY (VERGER_SERVER_PORT), its flag --key (--port).
Must not know what the settings do; aliases come from defaults and the file only, providers from the
file only.
"""

import difflib
import ipaddress
import os
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from verger import paths
from verger.errors import ConfigError

DEFAULT = "default"
"""The origin of a value that nobody has set."""
SERVED_MODEL = "auto"
"""As the target of an alias: whichever model is being served."""

_FOREIGN_NAMES = (
    "gpt-3.5-turbo gpt-4 gpt-4-turbo gpt-4o gpt-4o-mini gpt-4.1 gpt-4.1-mini gpt-4.1-nano "
    "gpt-5 gpt-5-mini gpt-5-nano gpt-5-codex o1 o1-mini o3 o3-mini o4-mini"
).split()
DEFAULT_ALIASES = {
    **dict.fromkeys(_FOREIGN_NAMES, SERVED_MODEL),
    "openai/gpt-oss-20b": "gpt-oss-20b",
    "openai/gpt-oss-120b": "gpt-oss-120b",
}
RELOADABLE = frozenset(
    f"server.{name}"
    for name in ("heartbeat_s", "allowed_hosts", "cors_origins", "tls_cert", "tls_key")
)
"""What a running server takes over on SIGHUP, besides [spill], aliases and providers; the rest
needs a restart."""
MAX_BUDGET_USD = 1_000_000.0
MAX_PROVIDERS = 16
MAX_PROVIDER_MODELS = 64
_Gib = Annotated[float, Meta(ge=0, le=65_536)]
_OTHER_VARIABLES = ("VERGER_HOME", "VERGER_REQUIRE_ORACLE", "VERGER_TEST_CACHE")
"""Of ours, but no settings: the state folder, and what the test suite is told."""


class ServerConfig(Struct, frozen=True):
    """What clients meet. Port 0 picks a free one; lists are separated by commas."""

    host: Annotated[str, Meta(min_length=1)] = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65_535)] = 8374
    name: Annotated[str, Meta(min_length=1, max_length=63)] = "verger"
    heartbeat_s: Annotated[float, Meta(gt=0, le=60)] = 5.0
    allowed_hosts: str = ""
    cors_origins: str = ""
    tls_cert: str = ""
    tls_key: str = ""


class EngineConfig(Struct, frozen=True):
    """What the engine process loads, how many sequences it decodes at once, what it may use.

    `kv_gib` is for running rows and cached prefixes together, 0 for all that the memory allows.
    `disk_gib` 0 keeps no prefixes on disk.
    """

    model: Annotated[str, Meta(min_length=1)] = "auto"
    max_rows: Annotated[int, Meta(ge=1, le=256)] = 16
    target_itl_ms: Annotated[float, Meta(ge=10, le=10_000)] = 250.0
    kv_gib: _Gib = 0.0
    prefix_cache: bool = True
    disk_gib: _Gib = 20.0
    disk_daily_gib: _Gib = 50.0


class LanConfig(Struct, frozen=True):
    """How the office network learns of the server. `interfaces` are names or addresses, with
    commas between them; empty leaves the choice to Verger."""

    bonjour: Literal["auto", "zeroconf", "dnssd", "none"] = "auto"
    interfaces: Annotated[str, Meta(max_length=1_000)] = ""


class CostsConfig(Struct, frozen=True):
    """What is known of this Mac, for the commands that count money: US dollars and fractions.

    None leaves the value to what models/machines/ assumes.
    """

    mac_price: Annotated[float, Meta(ge=0)] | None = None
    resale: Annotated[float, Meta(ge=0, le=1)] | None = None
    years: Annotated[float, Meta(gt=0, le=100)] | None = None
    kwh: Annotated[float, Meta(ge=0)] | None = None
    idle_w: Annotated[float, Meta(ge=0)] | None = None
    active_w: Annotated[float, Meta(ge=0)] | None = None
    decode_tok_s: Annotated[float, Meta(gt=0)] | None = None
    prefill_tok_s: Annotated[float, Meta(gt=0)] | None = None
    busy: Annotated[float, Meta(gt=0, le=1)] | None = None


class SpillConfig(Struct, frozen=True):
    """When a request is late, how long it may wait, and what a cloud may cost then."""

    enabled: bool = False
    ttft_objective_s: Annotated[float, Meta(gt=0, le=3_600)] = 10.0
    max_wait_s: Annotated[float, Meta(ge=1, le=86_400)] = 120.0
    monthly_budget_usd: Annotated[float, Meta(ge=0, le=MAX_BUDGET_USD)] = 0.0
    min_intelligence: Annotated[str, Meta(min_length=1, max_length=100)] = "gpt-oss-20b"


class LogConfig(Struct, frozen=True):
    """Where the log goes. An empty `file` is standard error; `crash_file` is what standard error
    itself was redirected to, an empty one is left alone."""

    file: Annotated[str, Meta(max_length=1_000)] = ""
    max_mib: Annotated[int, Meta(ge=1, le=10_240)] = 10
    kept_files: Annotated[int, Meta(ge=1, le=100)] = 5
    crash_file: Annotated[str, Meta(max_length=1_000)] = ""


ModelName = Annotated[str, Meta(min_length=1, max_length=128)]


class PriceConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """US dollars per million tokens."""

    input_usd: Annotated[float, Meta(ge=0, le=100_000)]
    output_usd: Annotated[float, Meta(ge=0, le=100_000)]


class ProviderConfig(Struct, frozen=True):
    """A table of [[providers]]. `kind` names a file of models/providers; empty, the one called like
    the provider, else `compatible`. An empty `base_url` is the kind's own; `models` maps a name of
    ours to the provider's. `price` is for all of them, where it is not the listed one;
    `monthly_budget_usd` None leaves it to the budgets of keys and of all providers together;
    `no_training` says that somebody has made sure of it, where the kind cannot."""

    name: Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9_-]{0,31}\Z")]
    models: Annotated[
        dict[ModelName, ModelName], Meta(min_length=1, max_length=MAX_PROVIDER_MODELS)
    ]
    kind: Annotated[str, Meta(max_length=32)] = ""
    base_url: Annotated[str, Meta(max_length=1_000)] = ""
    key_file: Annotated[str, Meta(max_length=1_000)] = ""
    price: PriceConfig | None = None
    monthly_budget_usd: Annotated[float, Meta(ge=0, le=MAX_BUDGET_USD)] | None = None
    no_training: bool = False


_SECTIONS: Mapping[str, type[Struct]] = {
    "server": ServerConfig,
    "engine": EngineConfig,
    "lan": LanConfig,
    "costs": CostsConfig,
    "spill": SpillConfig,
    "log": LogConfig,
}
_FIELDS = {
    f"{section}.{field.name}": field
    for section, struct in _SECTIONS.items()
    for field in msgspec.structs.fields(struct)
}
_VARIABLES = {f"VERGER_{key}".replace(".", "_").upper(): key for key in _FIELDS}


@dataclass(frozen=True, slots=True)
class Setting:
    """A value and where it came from: `default`, the file's path, a variable or a flag."""

    value: Any
    origin: str


@dataclass(frozen=True, slots=True)
class Config:
    """Everything that can be configured; `settings` holds the same values with their origins."""

    server: ServerConfig
    engine: EngineConfig
    lan: LanConfig
    costs: CostsConfig
    spill: SpillConfig
    log: LogConfig
    aliases: Mapping[str, str]
    providers: tuple[ProviderConfig, ...]
    """In the file's order, which is the order of preference."""
    settings: Mapping[str, Setting]


def load_config(
    flags: Mapping[str, object] | None = None,
    environ: Mapping[str, str] | None = None,
    file: Path | None = None,
) -> Config:
    """Merge the four layers. `flags` maps `section.key` to a value, None meaning not given.

    Without `file` the one in VERGER_HOME is read if it exists. Raises ConfigError.
    """
    settings = _from_defaults()
    settings |= _from_file(file)
    settings |= _from_environment(os.environ if environ is None else environ)
    settings |= _from_flags(flags or {})
    _refuse_what_has_no_effect(settings)
    return _config(settings)


def reloaded(running: Config, fresh: Config) -> tuple[Config, tuple[str, ...]]:
    """What the running server makes of a fresh configuration, and what of it needs a restart."""
    kept = {key: setting for key, setting in running.settings.items() if not _is_reloadable(key)}
    taken = {key: setting for key, setting in fresh.settings.items() if _is_reloadable(key)}
    changed = [key for key in kept if fresh.settings[key].value != kept[key].value]
    return _config(kept | taken), tuple(sorted(changed))


def _is_reloadable(key: str) -> bool:
    return key in RELOADABLE or key.startswith(("aliases.", "providers.", "spill."))


def _config(settings: dict[str, Setting]) -> Config:
    return Config(
        server=msgspec.convert(_section(settings, "server"), ServerConfig),
        engine=msgspec.convert(_section(settings, "engine"), EngineConfig),
        lan=msgspec.convert(_section(settings, "lan"), LanConfig),
        costs=msgspec.convert(_section(settings, "costs"), CostsConfig),
        spill=msgspec.convert(_section(settings, "spill"), SpillConfig),
        log=msgspec.convert(_section(settings, "log"), LogConfig),
        aliases=_section(settings, "aliases"),
        providers=tuple(_section(settings, "providers").values()),
        settings=settings,
    )


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach the address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _refuse_what_has_no_effect(settings: Mapping[str, Setting]) -> None:
    """Whoever sets it shall not believe that it does something."""
    enabled, least = settings["spill.enabled"], settings["spill.min_intelligence"]
    if enabled.value and not _section(settings, "providers"):
        raise ConfigError(
            f"{enabled.origin}: spill.enabled needs [[providers]]; add one, or set it to false"
        )
    if least.origin != DEFAULT and not enabled.value:
        raise ConfigError(
            f"{least.origin}: spill.min_intelligence has no effect while spill.enabled is false; "
            "remove it"
        )
    objective, wait = settings["spill.ttft_objective_s"], settings["spill.max_wait_s"]
    if objective.value > wait.value:
        raise ConfigError(
            f"{objective.origin}: spill.ttft_objective_s = {objective.value:g} exceeds "
            f"spill.max_wait_s = {wait.value:g}"
        )


def _from_defaults() -> dict[str, Setting]:
    values = {key: field.default for key, field in _FIELDS.items()}
    values |= {f"aliases.{name}": target for name, target in DEFAULT_ALIASES.items()}
    return {key: Setting(value, DEFAULT) for key, value in values.items()}


def _from_file(file: Path | None) -> dict[str, Setting]:
    path = file or paths.config_file()
    if file is None and not path.exists():
        return {}
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"cannot read the configuration {path}: {error}") from error
    origin = str(path)
    providers = _provider_settings(document.pop("providers", []), origin)
    parsed = {key: _parse(key, value, origin) for key, value in _flatten(document, origin)}
    return parsed | providers


def _provider_settings(tables: object, origin: str) -> dict[str, Setting]:
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise ConfigError(f"{origin}: providers must be a list of tables: write [[providers]]")
    if len(tables) > MAX_PROVIDERS:
        raise ConfigError(f"{origin}: more than {MAX_PROVIDERS} [[providers]]; remove some")
    settings: dict[str, Setting] = {}
    for index, table in enumerate(tables):
        provider = _provider(table, f"{origin}: providers[{index}]")
        key = f"providers.{provider.name}"
        if key in settings:
            raise ConfigError(f"{origin}: two [[providers]] are named {provider.name}; rename one")
        settings[key] = Setting(provider, origin)
    return settings


def _provider(table: Mapping[str, object], place: str) -> ProviderConfig:
    known = ProviderConfig.__struct_fields__
    if unknown := next((name for name in table if name not in known), None):
        raise _unknown(unknown, known, place)
    try:
        return msgspec.convert(table, ProviderConfig)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{place}: {error}") from error


def _flatten(document: Mapping[str, Any], origin: str) -> Iterable[tuple[str, Any]]:
    for section, table in document.items():
        if section not in _SECTIONS and section != "aliases":
            raise _unknown(section, [*_SECTIONS, "aliases", "providers"], origin)
        if not isinstance(table, dict):
            raise ConfigError(f"{origin}: {section} must be a table: write [{section}]")
        for key, value in table.items():
            yield f"{section}.{key}", value


def _from_environment(environ: Mapping[str, str]) -> dict[str, Setting]:
    settings = {}
    for name, text in environ.items():
        if not name.startswith("VERGER_") or name in _OTHER_VARIABLES:
            continue
        if name not in _VARIABLES:
            raise _unknown(name, _VARIABLES, "the environment")
        # A variable is always text, so "8374" must do for a number.
        settings[_VARIABLES[name]] = _parse(_VARIABLES[name], text, name, strict=False)
    return settings


def _from_flags(flags: Mapping[str, object]) -> dict[str, Setting]:
    given = {key: value for key, value in flags.items() if value is not None}
    return {key: _parse(key, value, _flag(key)) for key, value in given.items()}


def _flag(key: str) -> str:
    return "--" + key.split(".", 1)[1].replace("_", "-")


def _parse(key: str, raw: object, origin: str, *, strict: bool = True) -> Setting:
    """Check one value against its field's type and limits."""
    if key not in _FIELDS and not key.startswith("aliases."):
        raise _unknown(key, _FIELDS, origin)
    expected = _FIELDS[key].type if key in _FIELDS else str
    try:
        return Setting(msgspec.convert(raw, expected, strict=strict), origin)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{origin}: {key}: {error}") from error


def _unknown(name: str, known: Iterable[str], origin: str) -> ConfigError:
    nearest = difflib.get_close_matches(name, list(known), n=1, cutoff=0.0)[0]
    return ConfigError(f"{origin}: unknown setting {name}; the nearest known one is {nearest}")


def _section(settings: Mapping[str, Setting], section: str) -> dict[str, Any]:
    prefix = f"{section}."
    return {
        key.removeprefix(prefix): setting.value
        for key, setting in settings.items()
        if key.startswith(prefix)
    }
