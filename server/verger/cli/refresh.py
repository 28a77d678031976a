"""`verger providers refresh`: OpenRouter's public list of prices as a new dated file.

The only command that fetches prices, and only when somebody calls it. A day's file is never written
twice: what the ledger was counted by stays. Needs no key.
"""

import datetime
from collections.abc import Iterable
from typing import Annotated

import msgspec
import typer
from msgspec import Struct

from verger import paths
from verger.cli.assumed import shipped_and_fetched
from verger.cli.private_file import write_private
from verger.costs.formulas import OPENROUTER_FEE
from verger.costs.prices import Snapshot
from verger.errors import SnapshotError

OPENROUTER = "openrouter"
OPENROUTER_URL = "https://openrouter.ai/api/v1/models"
TIMEOUT_S = 30.0
MAX_BODY_BYTES = 32 * 1024 * 1024
TOKENS = 1_000_000


class _Pricing(Struct, frozen=True):
    """Text, in US dollars per token; negative where it depends on what is chosen."""

    prompt: str
    completion: str
    input_cache_read: str | None = None


class _Model(Struct, frozen=True):
    id: str
    pricing: _Pricing


class _List(Struct, frozen=True):
    data: list[_Model]


def refresh(
    url: Annotated[str, typer.Option(help="Another place for the same list.")] = OPENROUTER_URL,
) -> None:
    """Fetch OpenRouter's prices of the models that Verger knows; takes effect at the next start."""
    today = datetime.datetime.now(datetime.UTC).date()
    file = paths.fetched_dir() / "prices" / f"{OPENROUTER}-{today}.toml"
    if file.exists():
        print(f"Today's prices are there already: {file}")
        return
    known = _known(shipped_and_fetched())
    priced = [model for model in _fetch(url) if _name(model.id) in known and _has_price(model)]
    if not priced:
        raise SnapshotError(f"{url} has no price of any of {', '.join(sorted(known))}")
    write_private(file, _file(today, url, priced).encode())
    for model in priced:
        pricing = model.pricing
        print(f"{_name(model.id)}: {_usd(pricing.prompt)} in, {_usd(pricing.completion)} out")
    print(f"US dollars per million tokens, written to {file}")


def _known(snapshot: Snapshot) -> set[str]:
    """Models that a price is of use for: those that have one, or a score."""
    scored = {index.model for scores in snapshot.indices.values() for index in scores}
    return scored | {offer.model for offer in snapshot.offers}


def _fetch(url: str) -> list[_Model]:
    # Imported late: it costs every other command a tenth of a second.
    import httpx

    body = bytearray()
    try:
        with httpx.stream("GET", url, timeout=TIMEOUT_S, follow_redirects=False) as response:
            response.raise_for_status()
            for part in response.iter_bytes():
                body += part
                if len(body) > MAX_BODY_BYTES:
                    raise SnapshotError(f"{url} sends more than {MAX_BODY_BYTES} bytes")
        return msgspec.json.decode(body, type=_List).data
    except (httpx.HTTPError, httpx.InvalidURL, msgspec.DecodeError) as error:
        raise SnapshotError(f"cannot fetch prices from {url}: {error}") from None


def _name(model_id: str) -> str:
    """OpenRouter puts the maker before the model; a variant such as `:free` is another offer."""
    return model_id.rpartition("/")[2]


def _has_price(model: _Model) -> bool:
    pricing = model.pricing
    texts = [pricing.prompt, pricing.completion, pricing.input_cache_read or "0"]
    try:
        return all(0 <= float(text) < 1 for text in texts)
    except ValueError:
        return False


def _usd(per_token: str) -> float:
    return round(float(per_token) * TOKENS, 6)


def _file(date: datetime.date, url: str, models: Iterable[_Model]) -> str:
    lines = [f'provider = "{OPENROUTER}"', f"date = {date}", f"source = {_quoted(url)}"]
    lines.append(f"fee = {OPENROUTER_FEE}")
    for model in models:
        pricing = model.pricing
        lines += ["", f"[models.{_quoted(_name(model.id))}]"]
        lines += [f"input_usd = {_usd(pricing.prompt)}", f"output_usd = {_usd(pricing.completion)}"]
        if pricing.input_cache_read:
            lines.append(f"cached_usd = {_usd(pricing.input_cache_read)}")
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    """JSON's strings are TOML's."""
    return msgspec.json.encode(text).decode()
