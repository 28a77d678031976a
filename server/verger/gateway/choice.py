"""Which provider's model takes over a request: the cheapest point of intelligence above a floor.

Called by `cloud` for requests that spill; a request that names its model has chosen. Pure.
"""

from collections.abc import Iterable

from verger.costs.formulas import blended_usd, usd_per_point
from verger.costs.prices import Index, Snapshot
from verger.gateway.providers import Target


def by_point(
    targets: Iterable[Target], served: str, minimum: str, listed: Snapshot
) -> tuple[Target, ...]:
    """Cheapest point first: blended price × (1 + fee) ÷ index, in the newest version of the index
    that scores `minimum`, since points of different versions do not compare.

    The served model itself is always good enough, and comes last if it has no score. Where two cost
    the same the order of the configuration decides.
    """
    version, floor = _floor(minimum, listed)
    priced: list[tuple[float, Target]] = []
    unscored: list[Target] = []
    for target in targets:
        index = None if version is None else listed.index(target.model, version)
        is_enough = floor is not None and index is not None and index.is_at_least(floor)
        if index is not None and (is_enough or target.model == served):
            price = target.price
            point = usd_per_point(blended_usd(price), price.fee, index.value)
            priced.append((point, target))
        elif target.model == served:
            unscored.append(target)
    return (*(target for _, target in sorted(priced, key=lambda pair: pair[0])), *unscored)


def _floor(minimum: str, listed: Snapshot) -> tuple[str | None, Index | None]:
    for version in listed.indices:
        if (index := listed.index(minimum, version)) is not None:
            return version, index
    return None, None
