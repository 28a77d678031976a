"""`verger cost`: the comparison, what it prints, and where its numbers come from."""

import json
from pathlib import Path

import pytest

from tests.command_line import Verger
from tests.prices import MINI, price
from verger import paths
from verger.costs.assumptions import AssumedMac, Assumption, load_gpus, load_macs
from verger.costs.comparison import Comparison, Verdict, compare
from verger.costs.formulas import Mix, break_even_busy
from verger.costs.prices import Offer

GROQ = Offer("groq", "gpt-oss-20b", price(0.075, 0.30))
FLOOR = Offer("openrouter", "gpt-oss-20b", price(0.02, 0.10, fee=0.055))
NOTHING = Offer("acme", "gpt-oss-20b", price(0.0, 0.0))


def mac(busy: float) -> AssumedMac:
    assumed = load_macs(paths.catalogue_dir())["gpt-oss-20b"]
    return assumed.with_known({"busy": Assumption(busy, "a test")})


def compared(busy: float) -> Comparison:
    return compare(mac(busy), [GROQ, FLOOR, NOTHING], load_gpus(paths.catalogue_dir()))


@pytest.mark.parametrize(
    ("busy", "verdict"),
    [(0.39, Verdict.NOT_YET), (0.41, Verdict.PAYS_OFF), (1.0, Verdict.PAYS_OFF)],
)
def test_it_pays_off_from_break_even_on(busy: float, verdict: Verdict) -> None:
    groq, floor, nothing = compared(busy).providers
    assert groq.verdict is verdict
    assert groq.break_even_busy == break_even_busy(MINI, Mix(), GROQ.price)
    assert floor.verdict is nothing.verdict is Verdict.NEVER


def test_beyond_break_even_the_providers_month_costs_more() -> None:
    for busy in (0.39, 0.41):
        comparison = compared(busy)
        groq = comparison.providers[0]
        is_dearer = groq.usd_per_month > comparison.local.usd_per_month
        assert is_dearer is (groq.verdict is Verdict.PAYS_OFF)


def test_what_the_mac_costs_a_month() -> None:
    local = compared(0.10).local
    assert local.usd_per_month == pytest.approx((0.06342 + 0.001 + 0.1 * 0.012) * 730, rel=1e-3)
    assert local.blended_usd == pytest.approx(local.usd_per_mtok / 4)


def test_a_rented_gpu_that_nobody_stops_and_one_that_stops() -> None:
    """Ten starts a day, each billed for the wait of 300 s and the cold start of 460 s."""
    (gpu,) = compared(0.10).rented
    assert gpu.left_running_usd_per_month == pytest.approx(3.95 * 730)
    assert gpu.stopping_usd_per_month == pytest.approx(3.95 * 10 * 730 / 24 * 760 / 3600)
    assert gpu.verdict is Verdict.PAYS_OFF


def test_a_gpu_that_is_hardly_started_beats_the_mac() -> None:
    (gpu,) = load_gpus(paths.catalogue_dir())
    cheap = type(gpu.assumed)(
        gpu.assumed.usd_per_h,
        gpu.assumed.scaledown_s,
        gpu.assumed.cold_start_s,
        starts_per_day=Assumption(1, "a test"),
    )
    (row,) = compare(mac(0.1), [], [type(gpu)(gpu.name, gpu.date, cheap)]).rented
    assert row.verdict is Verdict.NOT_YET


def test_the_command_prints_every_assumption_with_its_source(verger: Verger) -> None:
    text = verger("cost", "--busy", "0.5", "--years", "5").out
    lines = [line.split(maxsplit=2) for line in text.splitlines()]
    assert ["busy", "0.5", "--busy"] in lines
    assert ["years", "5", "--years"] in lines
    assert ["kwh", "0.2", "assumed: US dollars per kWh"] in lines
    assert "Groq's list prices" in text
    assert "Modal, one H100: usd_per_h" in text


def test_the_command_says_never(verger: Verger) -> None:
    text = verger("cost").out
    (floor,) = [line for line in text.splitlines() if "openrouter   gpt-oss-20b" in line]
    assert "never (146%)" in floor
    (mini,) = [line for line in text.splitlines() if "gpt-5-mini" in line]
    assert "7% busy" in mini
    assert "pays off" in mini
    assert "Not paying off" not in text


def test_the_command_says_that_nothing_pays_off(verger: Verger) -> None:
    text = verger("cost", "--busy", "0.01").out
    assert "Not paying off: at this utilisation every provider is cheaper than the Mac." in text
    hot = verger("cost", "--kwh", "90").out
    assert "never  " in hot
    assert "does not pay off beside that" in hot


def test_the_command_as_json(verger: Verger) -> None:
    body = json.loads(verger("cost", "--json", "--model", "gpt-oss-120b").out)
    assert body["schema_version"] == 1
    assert body["machine"] == "Mac Studio, M5 Max, 128 GB"
    assert body["assumptions"]["mac_price"]["value"] == 5099
    verdicts = {(row["provider"], row["model"]): row["verdict"] for row in body["providers"]}
    assert verdicts["openrouter", "gpt-oss-120b"] == "never"


def test_an_infinite_break_even_is_null_in_json(verger: Verger) -> None:
    body = json.loads(verger("cost", "--json", "--kwh", "90").out)
    assert {row["break_even_busy"] for row in body["providers"]} == {None}


def test_the_configuration_is_a_source(verger: Verger, verger_home: Path) -> None:
    verger_home.mkdir()
    file = verger_home / "config.toml"
    file.write_text('[costs]\nmac_price = 1999\n[engine]\nmodel = "gpt-oss-120b"\n')
    body = json.loads(verger("cost", "--json").out)
    assert body["assumptions"]["mac_price"] == {"value": 1999, "source": str(file)}
    assert body["model"] == "gpt-oss-120b"


def test_a_model_that_no_mac_is_assumed_for_is_wrong_usage(verger: Verger) -> None:
    outcome = verger("cost", "--model", "nano")
    assert outcome.status == 2
    assert "gpt-oss-120b, gpt-oss-20b" in outcome.err


@pytest.mark.parametrize(
    ("flag", "value"), [("--busy", "0"), ("--busy", "1.01"), ("--years", "0"), ("--resale", "1.1")]
)
def test_a_value_beyond_its_limits_is_refused(flag: str, value: str, verger: Verger) -> None:
    outcome = verger("cost", flag, value)
    assert outcome.status == 3
    assert flag in outcome.err
