"""When an engine that ends again and again is started again."""

import pytest

from verger.gateway.safe_mode import HEALTHY_S, RestartPolicy


def test_single_deaths_are_followed_by_a_quick_restart() -> None:
    policy = RestartPolicy(0.25)
    assert [policy.delay_s(0, 0), policy.delay_s(1, 0)] == [0.25, 0.5]
    assert not policy.is_safe


@pytest.mark.parametrize(("third_s", "is_safe"), [(600, True), (601, False)])
def test_the_third_death_within_ten_minutes_is_one_too_many(third_s: float, is_safe: bool) -> None:
    policy = RestartPolicy(1.0)
    policy.delay_s(0, 0)
    policy.delay_s(300, 0)
    assert policy.delay_s(third_s, 0) == (600 if is_safe else 4)
    assert policy.is_safe is is_safe


def in_safe_mode() -> RestartPolicy:
    policy = RestartPolicy(1.0)
    for died_s in range(3):
        policy.delay_s(died_s, 0)
    return policy


def test_probes_become_rarer_up_to_one_an_hour() -> None:
    policy = in_safe_mode()
    delays_s = [policy.delay_s(10_000 * n, 0) for n in range(1, 6)]
    assert delays_s == [1_200, 2_400, 3_600, 3_600, 3_600]
    assert policy.is_safe


@pytest.mark.parametrize(
    ("ready_s", "delay_s"), [(HEALTHY_S - 1, 1_200), (HEALTHY_S, 1)], ids=["short", "healthy"]
)
def test_a_probe_that_holds_for_ten_minutes_begins_anew(ready_s: float, delay_s: float) -> None:
    policy = in_safe_mode()
    assert policy.delay_s(10_000, ready_s) == delay_s
    assert policy.is_safe is (ready_s < HEALTHY_S)


def test_a_hopeless_death_is_one_too_many() -> None:
    policy = RestartPolicy(1.0)
    assert policy.delay_s(0, 0, is_hopeless=True) == 600
    assert policy.is_safe
