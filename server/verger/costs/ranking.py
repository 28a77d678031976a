"""Models and providers by what a point of intelligence costs: the table Verger was conceived with.

Called by `verger providers rank`, and wherever one of several providers is to be chosen. Pure.
Only scores of one version of the index stand in one table.
"""

import datetime

from msgspec import Struct

from verger.costs.formulas import blended_usd, usd_per_point
from verger.costs.prices import Index, Snapshot
from verger.errors import SnapshotError

LOCAL = "this Mac"
QUOTED = "as quoted"
"""The provider of a price that stood beside a score: nobody in particular."""


class LocalOffer(Struct, frozen=True):
    """What this Mac's own tokens cost, beside the providers' prices."""

    model: str
    blended_usd: float
    date: datetime.date
    source: str


class Ranked(Struct, frozen=True):
    """One line of the table. Prices are per million tokens, `fee` is not in `blended_usd`."""

    model: str
    provider: str
    index: float
    effort: str
    blended_usd: float
    fee: float
    usd_per_point: float
    date: datetime.date
    source: str


class Ranking(Struct, frozen=True):
    """Cheapest point first."""

    index_version: str
    index_source: str
    rows: list[Ranked]
    left_out: list[str]
    """Models that have a price and no score in this version."""


def rank(
    snapshot: Snapshot, version: str | None = None, local: LocalOffer | None = None
) -> Ranking:
    """By scores of that version, or the newest. Raises SnapshotError where there is none."""
    version = _version(snapshot, version)
    rows = []
    missing = set()
    for row in [*_offers(snapshot), *([_local(local)] if local else [])]:
        index = snapshot.index(row.model, version)
        if index is None:
            missing.add(row.model)
        else:
            rows.append(_ranked(row, index))
    rows += [_ranked(_quote(index), index) for index in snapshot.indices[version] if _has(index)]
    return Ranking(
        index_version=version,
        index_source=snapshot.indices[version][0].source,
        rows=sorted(rows, key=lambda row: row.usd_per_point),
        left_out=sorted(missing),
    )


class _Row(Struct, frozen=True):
    model: str
    provider: str
    blended_usd: float
    fee: float
    date: datetime.date
    source: str


def _version(snapshot: Snapshot, wanted: str | None) -> str:
    versions = [version for version, scores in snapshot.indices.items() if scores]
    if not versions:
        raise SnapshotError("there is no index of intelligence: install Verger again")
    if wanted is not None and wanted not in versions:
        raise SnapshotError(f"no version {wanted} of the index; there are {', '.join(versions)}")
    return wanted or versions[0]


def _offers(snapshot: Snapshot) -> list[_Row]:
    return [
        _Row(
            offer.model,
            offer.provider,
            blended_usd(offer.price),
            offer.price.fee,
            offer.price.date,
            offer.price.source,
        )
        for offer in snapshot.offers
    ]


def _local(local: LocalOffer) -> _Row:
    return _Row(local.model, LOCAL, local.blended_usd, 0.0, local.date, local.source)


def _has(index: Index) -> bool:
    return index.quoted_usd is not None


def _quote(index: Index) -> _Row:
    assert index.quoted_usd is not None
    return _Row(index.model, QUOTED, index.quoted_usd, 0.0, index.date, index.source)


def _ranked(row: _Row, index: Index) -> Ranked:
    return Ranked(
        model=row.model,
        provider=row.provider,
        index=index.value,
        effort=index.effort,
        blended_usd=row.blended_usd,
        fee=row.fee,
        usd_per_point=usd_per_point(row.blended_usd, row.fee, index.value),
        date=row.date,
        source=row.source,
    )
