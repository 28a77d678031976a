"""What tokens cost where, and how intelligent models are said to be: dated files, never edited.

Loaded once by the gateway and the commands, from models/prices/ and models/indices/ and from what
was fetched since. New prices are a new file, so that a row of the ledger, which names the file it
was counted by, can be checked for ever. Must not know HTTP, or what a request is.
"""

import datetime
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, TypeVar

import msgspec
from msgspec import Meta, Struct

from verger.errors import SnapshotError

HIGH = "high"
"""The effort that an index is taken at where nothing else is said."""

_Usd = Annotated[float, Meta(ge=0, le=100_000)]
_Name = Annotated[str, Meta(min_length=1, max_length=200)]


class Price(Struct, frozen=True):
    """US dollars per million tokens, on one date."""

    input_usd: float
    output_usd: float
    cached_usd: float | None
    """Of input that the provider found cached; None: it grants nothing for that."""
    fee: float
    """Of every dollar spent there, what comes on top: 0.055 for OpenRouter's credits."""
    date: datetime.date
    source: str
    snapshot_id: str
    """The file that says so, by which the ledger can be checked later."""


class Offer(Struct, frozen=True):
    """Who sells a model, and for how much."""

    provider: str
    model: str
    price: Price


class Index(Struct, frozen=True):
    """How intelligent a model is, in the points of one version of one index."""

    model: str
    value: float
    version: str
    effort: str
    date: datetime.date
    source: str
    quoted_usd: float | None
    """The blended price that stood beside the score, where one did."""

    def is_at_least(self, other: "Index") -> bool:
        """Raises SnapshotError where the two are not of the same version."""
        if self.version != other.version:
            raise SnapshotError(
                f"{self.model} has {self.value:g} points in version {self.version} of the index "
                f"and {other.model} has {other.value:g} in version {other.version}: points of "
                "different versions cannot be compared; name a version that has both"
            )
        return self.value >= other.value


class _ModelPrice(Struct, frozen=True, forbid_unknown_fields=True):
    input_usd: _Usd
    output_usd: _Usd
    cached_usd: _Usd | None = None


class _PriceFile(Struct, frozen=True, forbid_unknown_fields=True):
    """prices/PROVIDER-DATE.toml."""

    provider: _Name
    date: datetime.date
    source: _Name
    models: dict[_Name, _ModelPrice]
    fee: Annotated[float, Meta(ge=0, lt=1)] = 0.0

    @property
    def id(self) -> str:
        return f"{self.provider}-{self.date}"

    def offers(self) -> Iterable[Offer]:
        for model, at in self.models.items():
            price = Price(
                at.input_usd,
                at.output_usd,
                at.cached_usd,
                self.fee,
                self.date,
                self.source,
                self.id,
            )
            yield Offer(self.provider, model, price)


class _Score(Struct, frozen=True, forbid_unknown_fields=True):
    model: _Name
    value: Annotated[float, Meta(gt=0)]
    effort: _Name = HIGH
    quoted_usd: _Usd | None = None


class _IndexFile(Struct, frozen=True, forbid_unknown_fields=True):
    """indices/VERSION.toml."""

    version: _Name
    date: datetime.date
    source: _Name
    scores: list[_Score]

    @property
    def id(self) -> str:
        return self.version

    def indices(self) -> Iterable[Index]:
        for score in self.scores:
            yield Index(
                score.model,
                score.value,
                self.version,
                score.effort,
                self.date,
                self.source,
                score.quoted_usd,
            )


_File = TypeVar("_File", _PriceFile, _IndexFile)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All that is known of prices and indices; of several prices the newest counts."""

    offers: Sequence[Offer] = ()
    """The newest of each provider and model."""
    indices: Mapping[str, Sequence[Index]] = field(default_factory=dict)
    """Version → its scores, the newest version first."""

    def price(self, provider: str, model: str) -> Price | None:
        """What the provider takes for the model; None: nobody has written that down."""
        for offer in self.offers:
            if (offer.provider, offer.model) == (provider, model):
                return offer.price
        return None

    def index(self, model: str, version: str | None = None, effort: str = HIGH) -> Index | None:
        """The model's score: in that version, or in the newest that scores it."""
        for name, scores in self.indices.items():
            for score in scores:
                if version in (None, name) and (score.model, score.effort) == (model, effort):
                    return score
        return None

    def meets(self, model: str, minimum: str) -> bool:
        """Whether a model is at least as intelligent as another, in the newest version that
        scores both. Raises SnapshotError where none does."""
        for version in self.indices:
            ours, theirs = self.index(model, version), self.index(minimum, version)
            if ours is not None and theirs is not None:
                return ours.is_at_least(theirs)
        raise SnapshotError(
            f"no version of the index scores both {model} and {minimum}, so they cannot be "
            f"compared; versions: {', '.join(self.indices) or 'none'}"
        )


def load_snapshot(*folders: Path) -> Snapshot:
    """Read prices/*.toml and indices/*.toml of each folder; one that is not there is empty.

    Raises SnapshotError for a damaged file.
    """
    prices = [_load(path, _PriceFile) for path in _files(folders, "prices")]
    indices = [_load(path, _IndexFile) for path in _files(folders, "indices")]
    newest: dict[tuple[str, str], Offer] = {}
    for price_file in sorted(prices, key=lambda file: file.date):
        newest |= {(offer.provider, offer.model): offer for offer in price_file.offers()}
    by_date = sorted(indices, key=lambda file: file.date, reverse=True)
    return Snapshot(
        offers=tuple(newest[key] for key in sorted(newest)),
        indices={file.version: tuple(file.indices()) for file in by_date},
    )


def _files(folders: Sequence[Path], kind: str) -> Iterable[Path]:
    for folder in folders:
        yield from sorted((folder / kind).glob("*.toml"))


def _load(path: Path, schema: type[_File]) -> _File:
    try:
        file = msgspec.toml.decode(path.read_bytes(), type=schema)
    except (OSError, msgspec.DecodeError) as error:
        raise SnapshotError(f"{path}: {error}") from error
    if file.id != path.stem:
        raise SnapshotError(f"{path}: what it holds belongs into {file.id}.toml")
    return file
