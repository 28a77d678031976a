"""Each formula against numbers that were worked out before it was written."""

import math
from dataclasses import replace

import pytest

from tests.prices import GPT_5_MINI, MINI, STUDIO, price
from verger.costs.formulas import (
    Machine,
    Mix,
    RentedGpu,
    amortisation_usd_per_h,
    blended_usd,
    break_even_busy,
    displaced_usd_per_h,
    energy_usd_per_h,
    local_blended_usd,
    local_usd_per_mtok,
    micro_usd,
    micro_usd_up,
    openrouter_fee,
    rented_usd,
    request_usd,
    usd_per_point,
)
from verger.costs.prices import Price

OPENROUTER_20B, OPENROUTER_120B = price(0.02, 0.10, fee=0.055), price(0.03, 0.17, fee=0.055)
GROQ_20B, GROQ_120B = price(0.075, 0.30), price(0.15, 0.60)
STUDIO_HOT = replace(STUDIO, active_w=290)


@pytest.mark.parametrize(
    ("at", "blended"),
    [
        (GPT_5_MINI, 0.69),
        (price(0.05, 0.40), 0.14),
        (GROQ_120B, 0.26),
        (OPENROUTER_120B, 0.065),
        (OPENROUTER_20B, 0.04),
    ],
)
def test_the_blended_price(at: Price, blended: float) -> None:
    places = 2 if blended > 0.1 else 3
    assert math.floor(blended_usd(at) * 10**places + 0.5) / 10**places == blended


@pytest.mark.parametrize(
    ("blended", "fee", "index", "per_point"),
    [
        (0.065, 0, 12, 0.0054),
        (0.040, 0, 9, 0.0044),
        (0.040, 0.055, 9, 0.0047),
        (0.26, 0, 61, 0.0043),
        (0.09, 0, 49, 0.0018),
        (0.69, 0, 64, 0.0108),
        (0.14, 0, 54, 0.0026),
    ],
)
def test_the_price_of_a_point(blended: float, fee: float, index: float, per_point: float) -> None:
    assert round(usd_per_point(blended, fee, index), 4) == per_point


@pytest.mark.parametrize(
    ("top_up_usd", "fee"), [(5, 0.16), (10, 0.08), (14.54, 0.05502), (14.55, 0.055), (100, 0.055)]
)
def test_openrouter_takes_a_minimum_of_small_purchases(top_up_usd: float, fee: float) -> None:
    assert openrouter_fee(top_up_usd) == pytest.approx(fee, rel=1e-4)


def test_a_request_costs_its_tokens_and_the_fee() -> None:
    at = price(0.25, 2.00, cached_usd=0.025, fee=0.10)
    assert request_usd(at, 1_000_000, 0, 0) == pytest.approx(0.275)
    assert request_usd(at, 0, 1_000_000, 0) == pytest.approx(0.0275)
    assert request_usd(at, 0, 0, 1_000_000) == pytest.approx(2.20)
    assert request_usd(at, 1_000, 2_000, 500) == pytest.approx(0.001_43)


def test_cached_input_costs_the_same_where_the_provider_grants_nothing() -> None:
    assert request_usd(GPT_5_MINI, 10, 90, 0) == request_usd(GPT_5_MINI, 100, 0, 0)


def test_millionths_are_rounded_to_the_nearest_or_up() -> None:
    assert [micro_usd(usd) for usd in (0.0, 4e-7, 6e-7, 1.5)] == [0, 0, 1, 1_500_000]
    assert [micro_usd_up(usd) for usd in (0.0, 4e-7, 1e-6, 1.1e-6)] == [0, 1, 1, 2]


def test_an_exact_sum_is_not_rounded_up() -> None:
    """0.1 + 0.2 is a little more than 0.3 as a float."""
    assert micro_usd_up(0.1 + 0.2) == 300_000


def test_what_a_machine_costs_an_hour() -> None:
    assert amortisation_usd_per_h(MINI) == pytest.approx(2_299 * 0.725 / 26_280)
    assert energy_usd_per_h(MINI, 0) == pytest.approx(0.001)
    assert energy_usd_per_h(MINI, 0.5) == pytest.approx(0.007)
    assert energy_usd_per_h(MINI, 1) == pytest.approx(0.013)


def test_a_local_million_of_output_with_its_input() -> None:
    """1/120 + 3/1200 s for a token of output: 332,308 of them in a busy hour."""
    fixed, marginal = 2_299 * 0.725 / 26_280 + 0.001, 0.012
    always = (fixed + marginal) / 332_307.7 * 1e6
    assert local_usd_per_mtok(MINI, Mix(), busy=1) == pytest.approx(always)
    tenth = (fixed + 0.1 * marginal) / 33_230.77 * 1e6
    assert local_usd_per_mtok(MINI, Mix(), busy=0.1) == pytest.approx(tenth)
    assert local_blended_usd(MINI, busy=0.1) == pytest.approx(tenth / 4)


def test_what_a_provider_would_have_been_paid() -> None:
    at = price(1.0, 2.0, cached_usd=0.5, fee=0.10)
    per_h = displaced_usd_per_h(at, MINI, Mix(uncached=3, cached=4))
    assert per_h == pytest.approx(332_307.7 * (2 + 3 * 1 + 4 * 0.5) * 1.1 / 1e6)


@pytest.mark.parametrize(
    ("machine", "against", "low", "high"),
    [
        (MINI, OPENROUTER_20B, 1.45, 1.47),
        (MINI, GROQ_20B, 0.395, 0.405),
        (MINI, GPT_5_MINI, 0.065, 0.075),
        (STUDIO, OPENROUTER_120B, 1.95, 2.05),
        (STUDIO_HOT, OPENROUTER_120B, 4.2, 4.4),
        (STUDIO, GROQ_120B, 0.43, 0.45),
        (STUDIO_HOT, GROQ_120B, 0.49, 0.51),
        (STUDIO, GPT_5_MINI, 0.155, 0.165),
        (STUDIO_HOT, GPT_5_MINI, 0.165, 0.175),
    ],
)
def test_the_utilisation_at_which_a_machine_pays_off(
    machine: Machine, against: Price, low: float, high: float
) -> None:
    """Above 1: never, which is so of the same open model at its lowest price."""
    assert low < break_even_busy(machine, Mix(), against) < high


def test_a_provider_below_the_price_of_electricity_can_never_be_beaten() -> None:
    assert break_even_busy(STUDIO_HOT, Mix(), price(0.001, 0.001)) == math.inf


def test_at_break_even_both_cost_the_same() -> None:
    busy = break_even_busy(MINI, Mix(), GROQ_20B)
    paid = displaced_usd_per_h(GROQ_20B, MINI, Mix()) * busy
    assert amortisation_usd_per_h(MINI) + energy_usd_per_h(MINI, busy) == pytest.approx(paid)


def test_twelve_prompts_on_a_gpu_that_nobody_stopped() -> None:
    """Two minutes of work at $3.60 an hour; it was noticed an hour and a half after the start."""
    work_h, cold_start_s, noticed_s = 12 * 10 / 3600, 60, 5_400
    forgotten = RentedGpu(3.60, noticed_s - 120 - cold_start_s, cold_start_s)
    assert rented_usd(forgotten, work_h, starts=1) == pytest.approx(5.40)
    stopped = replace(forgotten, scaledown_s=0)
    assert rented_usd(stopped, work_h, starts=1) == pytest.approx(0.18)


def test_each_start_of_a_rented_gpu_is_billed() -> None:
    gpu = RentedGpu(usd_per_h=3.60, scaledown_s=300, cold_start_s=60)
    assert rented_usd(gpu, busy_h=1, starts=10) == pytest.approx(3.60 + 3.60)
