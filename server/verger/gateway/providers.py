"""Who else can answer: the configured providers, and what each kind of provider understands.

Kinds are data, models/providers/*.toml; providers are [[providers]] of config.toml. Read at start
by `verger serve` and by `verger providers check`. Must not know HTTP. Keys are read from private
files here, and kept out of every repr. Whoever sells at a price that nobody has written down cannot
be used: what a call may cost is reserved before it is made.
"""

import difflib
import ipaddress
import os
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta, Struct

from verger.config import PriceConfig, ProviderConfig
from verger.costs.prices import Price, Snapshot
from verger.errors import ConfigError
from verger.gateway.backends.quirks import QUIRKS

ANY_PROVIDER = "cloud"
"""In the place of a provider's name: whichever has the model."""
CONFIGURED = "configured"
"""In the place of a file of prices: an administrator's word."""
COMPATIBLE = "compatible"
"""The kind of a provider that is not known by name."""
MAX_KEY_BYTES = 1_024
OPTIONAL_FIELDS = frozenset(
    {
        "temperature",
        "top_p",
        "top_k",
        "min_p",
        "frequency_penalty",
        "presence_penalty",
        "repetition_penalty",
        "logit_bias",
        "n",
        "seed",
        "stop",
        "logprobs",
        "top_logprobs",
        "tools",
        "reasoning_effort",
    }
)
"""What a kind may list: all that a request can hold besides model, messages and its length."""


class Kind(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One file of models/providers."""

    kind: str
    title: str
    base_url: str = ""
    """Empty: each provider of the kind has its own."""
    needs_key: bool
    key_hint: str
    """Where a key comes from."""
    max_tokens_field: Literal["max_tokens", "max_completion_tokens"]
    history_reasoning: Literal["", "reasoning", "reasoning_content"] = ""
    """The name under which earlier reasoning is sent along; empty: it is left out."""
    is_free: bool = False
    """Nobody asks for money: it is somebody's own machine."""
    reports_cost: bool = False
    """Its usage has a `cost`, in US dollars."""
    data_policy: str
    """What it does with prompts, in a few words for people."""
    may_train: bool = False
    """It may train on prompts, or nothing is known of that."""
    joins_tool_loops: bool = True
    """It can continue a tool loop that was begun elsewhere."""
    answers_cold: bool = True
    """It answers within seconds, whether or not it was used lately."""
    fields: frozenset[str]
    quirks: tuple[str, ...] = ()
    """Names of transformations in `backends/quirks`."""
    always: Annotated[dict[str, Any], Meta(max_length=16)] = {}
    """Sent along with every request."""


@dataclass(frozen=True, slots=True)
class Provider:
    """One table of [[providers]], checked."""

    name: str
    kind: Kind
    base_url: str
    models: Mapping[str, str]
    """A name of ours → the provider's."""
    key_file: Path | None = None
    key: str | None = field(default=None, repr=False)
    prices: Mapping[str, Price] = field(default_factory=dict)
    """By the name of ours; all of them, unless there is a problem."""
    monthly_budget_usd: float | None = None
    may_train: bool = False
    """Requests that do not name it never go there."""
    problem: str | None = None
    """Why it cannot be used as it is configured, and what to do."""


@dataclass(frozen=True, slots=True)
class Target:
    """A model of a provider: what one attempt is made with."""

    provider: Provider
    model: str
    """The name of ours."""

    @property
    def model_id(self) -> str:
        """The provider's own name."""
        return self.provider.models[self.model]

    @property
    def price(self) -> Price:
        """What it takes, by the list or by the configuration."""
        return self.provider.prices[self.model]

    @property
    def name(self) -> str:
        """What a client writes to get this model of this provider."""
        return f"{self.provider.name}/{self.model}"


def load_kinds(folder: Path) -> Mapping[str, Kind]:
    """Read models/providers/*.toml. Raises ConfigError for a damaged file."""
    kinds = [_load_kind(path) for path in sorted(folder.glob("*.toml"))]
    return {kind.kind: kind for kind in kinds}


def load_providers(
    configured: Sequence[ProviderConfig], kinds: Mapping[str, Kind], home: Path, listed: Snapshot
) -> tuple[Provider, ...]:
    """Check what is configured and read the keys; `home` is where relative paths of keys begin,
    `listed` has the prices.

    Raises ConfigError for what can only be a mistake. A key or a price that is missing makes the
    provider unusable and nothing else: the server must not depend on a cloud.
    """
    return tuple(_provider(config, kinds, home, listed) for config in configured)


def _load_kind(path: Path) -> Kind:
    try:
        kind = msgspec.toml.decode(path.read_bytes(), type=Kind)
    except (OSError, msgspec.DecodeError) as error:
        raise ConfigError(f"{path}: {error}") from error
    if kind.kind != path.stem:
        raise ConfigError(f"{path}: kind {kind.kind!r} differs from the file's name")
    if unknown := sorted(kind.fields - OPTIONAL_FIELDS):
        raise ConfigError(f"{path}: fields: {unknown[0]!r} is no field of a request")
    if unknown := [quirk for quirk in kind.quirks if quirk not in QUIRKS]:
        raise ConfigError(f"{path}: quirks: there is no {unknown[0]!r}")
    return kind


def _provider(
    config: ProviderConfig, kinds: Mapping[str, Kind], home: Path, listed: Snapshot
) -> Provider:
    place = f"[[providers]] {config.name}"
    if config.name == ANY_PROVIDER:
        raise ConfigError(f"{place}: this name means all providers; choose another")
    kind = _kind(config, kinds, place)
    base_url = _base_url(config, kind, place)
    path = home / Path(config.key_file).expanduser() if config.key_file else None
    key, problem = (None, None) if path is None else _read_key(path, place)
    if path is None and kind.needs_key:
        problem = f'it needs a key: {kind.key_hint}, and name its file with key_file = "secrets/…"'
    if key is not None and not _is_private_way(base_url):
        raise ConfigError(
            f"{place}: base_url {base_url} would carry the key over the network in the clear; "
            "use https"
        )
    prices = {model: _price(config, kind, id, listed) for model, id in config.models.items()}
    known = {model: price for model, price in prices.items() if price is not None}
    if unpriced := next((model for model in prices if model not in known), None):
        problem = problem or (
            f"nobody has written down what it takes for {unpriced}: say it in US dollars per "
            "million tokens, price = { input_usd = …, output_usd = … }"
        )
    return Provider(
        name=config.name,
        kind=kind,
        base_url=base_url,
        models=config.models,
        key_file=path,
        key=key,
        prices=known,
        monthly_budget_usd=config.monthly_budget_usd,
        may_train=kind.may_train and not config.no_training,
        problem=problem,
    )


def _price(config: ProviderConfig, kind: Kind, model_id: str, listed: Snapshot) -> Price | None:
    """The configured one, else the newest in the lists; those name a model without its maker."""
    if config.price is None and not kind.is_free:
        return listed.price(kind.kind, model_id.rpartition("/")[2].partition(":")[0])
    said = config.price or PriceConfig(0, 0)
    return Price(
        input_usd=said.input_usd,
        output_usd=said.output_usd,
        cached_usd=None,
        fee=0.0,
        date=datetime.now(UTC).date(),
        source="config.toml",
        snapshot_id=CONFIGURED,
    )


def _kind(config: ProviderConfig, kinds: Mapping[str, Kind], place: str) -> Kind:
    name = config.kind or (config.name if config.name in kinds else COMPATIBLE)
    if name not in kinds:
        nearest = difflib.get_close_matches(name, list(kinds), n=1, cutoff=0.0)[0]
        raise ConfigError(f"{place}: unknown kind {name!r}; the nearest known one is {nearest!r}")
    return kinds[name]


def _base_url(config: ProviderConfig, kind: Kind, place: str) -> str:
    url = (config.base_url or kind.base_url).rstrip("/")
    if not url:
        raise ConfigError(
            f"{place}: a provider of kind {kind.kind!r} needs its own base_url, "
            'such as "https://HOST/v1"'
        )
    parts = urlsplit(url)
    is_plain = not (parts.username or parts.password or parts.query or parts.fragment)
    if parts.scheme not in ("http", "https") or not parts.hostname or not is_plain:
        raise ConfigError(f"{place}: base_url must be http(s)://HOST[:PORT]/PATH and nothing else")
    return url


def _is_private_way(url: str) -> bool:
    """Whether a key may go there: by TLS, or by HTTP no further than the office."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        is_near = "." not in host or host.endswith((".local", ".lan", ".home.arpa", ".internal"))
    else:
        is_near = address.is_private or address.is_loopback or address.is_link_local
    return parts.scheme == "https" or is_near


def _read_key(path: Path, place: str) -> tuple[str | None, str | None]:
    """The key, or else what is wrong. Raises ConfigError if others can read the file too."""
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            content = file.read(MAX_KEY_BYTES + 1)
    except OSError as error:
        return None, f"its key file {path} cannot be read: {error.strerror}"
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise ConfigError(
            f"{place}: others can read the key file {path}; run: chmod 600 '{path}', "
            "and replace the key if somebody may have read it"
        )
    key = content.strip()
    if not key or len(content) > MAX_KEY_BYTES or not key.isascii() or len(key.split()) > 1:
        return None, f"its key file {path} must hold the key on one line and nothing else"
    return key.decode("ascii"), None
