"""Which provider's model takes over a request: what may, and in which order it is asked."""

from collections.abc import Mapping

import pytest

from tests.prices import price
from tests.providers import KINDS
from verger.costs.prices import HIGH, Index, Price, Snapshot
from verger.gateway.choice import by_point
from verger.gateway.providers import Provider, Target

SERVED = "served"
FLOOR = "floor"


def scored(version: str, points: Mapping[str, float], effort: str = HIGH) -> list[Index]:
    day = price(0, 0).date
    return [
        Index(model, value, version, effort, day, "a test", None) for model, value in points.items()
    ]


def listing(**versions: Mapping[str, float]) -> Snapshot:
    """The newest version first."""
    return Snapshot(indices={name: scored(name, points) for name, points in versions.items()})


def target(model: str, at: Price, name: str = "acme") -> Target:
    kind = KINDS["compatible"]
    url = "http://[::1]/v1"
    provider = Provider(name, kind, url, {model: model}, prices={model: at})
    return Target(provider, model)


def order(targets: list[Target], listed: Snapshot, minimum: str = FLOOR) -> list[str]:
    return [chosen.name for chosen in by_point(targets, SERVED, minimum, listed)]


def test_the_cheapest_point_comes_first_not_the_cheapest_token() -> None:
    listed = listing(new={FLOOR: 10, "small": 10, "large": 40})
    small, large = target("small", price(1.0, 1.0)), target("large", price(3.0, 3.0))
    assert order([small, large], listed) == ["acme/large", "acme/small"]


def test_a_price_is_blended_of_three_tokens_in_and_one_out() -> None:
    """By the sum of both prices, or with one to one, it would be the other way round."""
    listed = listing(new={FLOOR: 10, "wordy": 10, "terse": 10})
    wordy, terse = target("wordy", price(2.0, 2.0)), target("terse", price(1.0, 4.0))
    assert order([wordy, terse], listed) == ["acme/terse", "acme/wordy"]


@pytest.mark.parametrize(("fee", "first"), [(0.05, "dear/m"), (0.2, "cheap/m")])
def test_the_fee_is_part_of_the_price(fee: float, first: str) -> None:
    listed = listing(new={FLOOR: 10, "m": 10})
    with_fee = target("m", price(1.0, 1.0, fee=fee), "dear")
    without = target("m", price(1.1, 1.1), "cheap")
    assert order([with_fee, without], listed)[0] == first


def test_whoever_asks_for_no_money_comes_first() -> None:
    listed = listing(new={FLOOR: 10, "paid": 90, "free": 10})
    paid, free = target("paid", price(0.01, 0.01)), target("free", price(0, 0))
    assert order([paid, free], listed) == ["acme/free", "acme/paid"]


def test_whoever_scores_less_than_the_floor_is_left_out_however_cheap() -> None:
    listed = listing(new={FLOOR: 10, "at": 10, "below": 9.9})
    targets = [target("below", price(0, 0)), target("at", price(5.0, 5.0))]
    assert order(targets, listed) == ["acme/at"]


def test_whoever_has_no_score_is_left_out() -> None:
    listed = listing(new={FLOOR: 10})
    assert order([target("unknown", price(0, 0))], listed) == []


def test_scores_are_those_of_high_effort() -> None:
    """With low effort it would be good enough."""
    low, high = scored("new", {"m": 50}, "low"), scored("new", {FLOOR: 10, "m": 9})
    assert order([target("m", price(0, 0))], Snapshot(indices={"new": [*low, *high]})) == []


def test_the_newest_version_that_scores_the_floor_is_the_only_one_that_counts() -> None:
    """In the old one every model has many more points."""
    listed = listing(new={FLOOR: 10, "m": 12}, old={FLOOR: 40, "m": 20, "elder": 60})
    targets = [target("elder", price(0, 0)), target("m", price(1.0, 1.0))]
    assert order(targets, listed) == ["acme/m"]


def test_a_version_that_does_not_score_the_floor_is_not_looked_at() -> None:
    listed = listing(newest={"m": 1, "fresh": 99}, older={FLOOR: 10, "m": 12})
    targets = [target("fresh", price(0, 0)), target("m", price(1.0, 1.0))]
    assert order(targets, listed) == ["acme/m"]


def test_the_served_model_is_good_enough_below_the_floor_and_goes_by_its_price() -> None:
    listed = listing(new={FLOOR: 10, SERVED: 5, "m": 10})
    served, other = target(SERVED, price(1.0, 1.0)), target("m", price(3.0, 3.0))
    assert order([other, served], listed) == [f"acme/{SERVED}", "acme/m"]


def test_the_served_model_comes_last_where_it_has_no_score() -> None:
    listed = listing(new={FLOOR: 10, "m": 10}, old={SERVED: 90})
    served, other = target(SERVED, price(0, 0)), target("m", price(9.0, 9.0))
    assert order([served, other], listed) == ["acme/m", f"acme/{SERVED}"]


def test_only_the_served_model_is_left_where_nobody_scores_the_floor() -> None:
    listed = listing(new={"m": 99, SERVED: 99})
    targets = [target("m", price(0, 0)), target(SERVED, price(1.0, 1.0))]
    assert order(targets, listed) == [f"acme/{SERVED}"]


def test_where_two_cost_the_same_the_order_of_the_configuration_decides() -> None:
    listed = listing(new={FLOOR: 10, "m": 10})
    names = ["second", "first", "third"]
    assert order([target("m", price(1.0, 1.0), name) for name in names], listed) == [
        f"{name}/m" for name in names
    ]
    unscored = [target(SERVED, price(9 - at, 1.0), name) for at, name in enumerate(names)]
    assert order(unscored, listed) == [f"{name}/{SERVED}" for name in names]
