"""What a soak counts, what it holds against the server afterwards, and how it is printed."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
import typer

from verger.bench import soak
from verger.bench.served import Status
from verger.bench.soak_asks import LEAVING, plain
from verger.bench.soak_check import Outcome, Verdict
from verger.bench.soak_memory import TARGET_GROWTH, TARGET_MINUTES, Growth, Memory
from verger.bench.soak_report import (
    MAX_ASKED_ALONE,
    MAX_BAD,
    MAX_EXAMPLES,
    MIN_COPIED,
    SCHEMA_VERSION,
    Counts,
    SoakPlan,
    SoakReport,
    Tally,
    remains_of,
)
from verger.cli import bench_soak

ASKED = replace(plain("nano"), features=frozenset({"stop", "n"}))
ANSWERED = Verdict(Outcome.ANSWERED, is_copy=True)
URL = "http://localhost:8374/v1"


def tallied(*verdicts: Verdict) -> Tally:
    tally = Tally()
    for verdict in verdicts:
        tally.note(ASKED, verdict)
    return tally


def test_a_refusal_for_want_of_room_and_a_client_that_left_are_no_fault() -> None:
    tally = tallied(ANSWERED, Verdict(Outcome.LEFT), Verdict(Outcome.OVERLOADED, "503: full"))
    assert tally.is_sound
    assert tally.examples == []
    assert tally.counts() == Counts(answered=1, left=1, overloaded=1, failed=0, malformed=0, lost=0)


@pytest.mark.parametrize("outcome", [Outcome.FAILED, Outcome.MALFORMED, Outcome.LOST])
def test_what_is_bad_is_counted_and_the_first_ones_are_described(outcome: Outcome) -> None:
    bad = [Verdict(outcome, f"fault {number}") for number in range(MAX_EXAMPLES + 1)]
    tally = tallied(*bad)
    assert not tally.is_sound
    assert tally.outcomes[outcome] == MAX_EXAMPLES + 1
    assert tally.examples == [
        f"{outcome.value}: fault {number} (n, stop)" for number in range(MAX_EXAMPLES)
    ]


def test_a_soak_is_given_up_after_so_many_bad_replies() -> None:
    bad = [Verdict(Outcome.LOST)] * MAX_BAD
    assert not tallied(*bad[1:], *[ANSWERED] * MAX_BAD).is_hopeless
    assert tallied(*bad).is_hopeless


WRONG = Verdict(Outcome.ANSWERED, is_copy=False, said="zebra")


def explained(copies: int, alone: Verdict) -> Tally:
    tally = tallied(*[ANSWERED] * (copies - 1), WRONG)
    for asked, verdict in tally.unexplained:
        tally.explain(asked, verdict, alone)
    return tally


def test_a_copy_that_nano_gets_wrong_alone_too_is_its_own_mistake() -> None:
    tally = explained(2, WRONG)
    assert (tally.own_mistakes, tally.wrong_copies, tally.are_copies_met) == (1, 0, True)
    assert tally.examples == []


@pytest.mark.parametrize(
    "alone", [replace(WRONG, is_copy=True, said="apple"), Verdict(Outcome.LOST, "cut off")]
)
def test_of_the_others_one_in_two_hundred_may_be_wrong(alone: Verdict) -> None:
    assert explained(200, alone).are_copies_met is True
    tally = explained(199, alone)
    assert tally.are_copies_met is False
    said = alone.said or "lost"
    assert tally.examples == [f"wrong copy: zebra, and alone {said} (n, stop)"]
    assert tallied(Verdict(Outcome.ANSWERED)).are_copies_met is None


def test_only_so_many_wrong_copies_are_asked_for_again() -> None:
    tally = tallied(*[WRONG] * (MAX_ASKED_ALONE + 1))
    assert len(tally.unexplained) == MAX_ASKED_ALONE
    assert tally.wrong_copies == 1


def status(running: int = 0, kv: int = 100, cached: int = 60, **keys: int) -> Status:
    cache: dict[str, Any] = dict.fromkeys(
        ("limit_bytes", "asked_tokens", "cached_tokens", "token_bytes", "window_bytes"), 0
    )
    told = {
        "rows": {"running": running},
        "tokens": {"prefilled": 0, "decoded": 0, "background": 0},
        "cache": {**cache, "bytes": cached},
        "memory": {"kv_bytes": kv},
        "keys": [{"name": name, "running": count} for name, count in keys.items()],
    }
    return msgspec.convert(told, Status)


def test_cached_prefixes_may_stay_and_nothing_else() -> None:
    before = status(watcher=1, ada=0)
    assert remains_of(before, status(kv=940, cached=900, watcher=1, ada=0)) == []
    assert "rows: " in remains_of(before, status(running=1, watcher=1))[0]
    assert remains_of(before, status(kv=101)) == [
        "1 bytes of KV that are neither cached nor were held before"
    ]
    assert remains_of(before, status(watcher=1, ada=2)) == ["2 permits of the key ada"]


GROWTH = Growth(
    quarter_bytes=[90 * 2**20, 100 * 2**20, 125 * 2**20, 130 * 2**20],
    warm_bytes=100 * 2**20,
    end_bytes=130 * 2**20,
    peak_bytes=140 * 2**20,
    growth_bytes=30 * 2**20,
    bounded_bytes=20 * 2**20,
    growth_ratio=0.1,
)
MEMORY = Memory(
    gateway=GROWTH,
    engine=GROWTH,
    samples=9,
    engine_restarts=0,
    target_growth_ratio=0.1,
    is_met=True,
)


def report(memory: Memory | None, remains: list[str]) -> SoakReport:
    counts = Counts(answered=180, left=60, overloaded=5, failed=1, malformed=2, lost=3)
    return SoakReport(
        schema_version=SCHEMA_VERSION,
        model="nano",
        url=None,
        machine="a Mac",
        cores=8,
        seed=1,
        at_once=40,
        minutes=None,
        elapsed_s=9.4,
        requests=251,
        features={"leaves": 60, "stop": 40},
        counts=counts,
        is_sound=False,
        copies=102,
        own_mistakes=2,
        wrong_copies=1,
        target_copied=0.995,
        are_copies_met=True,
        examples=["lost: cut off (stop)"],
        remains=remains,
        is_restored=not remains,
        memory=memory,
        memory_skipped=None if memory else "no pid",
    )


def test_counts_verdicts_and_memory_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    bench_soak.print_report(report(MEMORY, []))
    printed = capsys.readouterr().out
    rows = [line.split() for line in printed.splitlines()]
    assert ["251", "180", "60", "5", "1", "2", "3", "9"] in rows
    assert [
        "engine",
        "90.0",
        "100.0",
        "125.0",
        "130.0",
        "140.0",
        "+30.0",
        "+20.0",
        "+10.0%",
    ] in rows
    assert "of them 60 leaves, 40 stop" in printed
    assert "lost: cut off (stop)" in printed
    assert "no reply malformed, lost or failed: missed" in printed
    assert "of 100 copies that nano gets right alone 99 were right, at least 99.5%" in printed
    assert "afterwards all is as before: met" in printed
    assert "growth of the rest at most 10%: met" in printed


def test_what_remains_and_why_there_is_no_memory_is_printed(
    capsys: pytest.CaptureFixture[str],
) -> None:
    bench_soak.print_report(report(None, ["2 permits of the key ada"]))
    printed = capsys.readouterr().out
    assert re.search(r"as before: missed\n +2 permits of the key ada", printed)
    assert "memory: skipped, no pid" in printed


def test_a_soak_has_one_end() -> None:
    with pytest.raises(typer.BadParameter, match="after --requests or after --minutes"):
        bench_soak.soak(minutes=1.0, requests=5)


def test_only_nano_is_known_to_copy() -> None:
    plan = SoakPlan(
        own=None, running=None, model="nano", seed=1, at_once=1, requests=1, minutes=None
    )
    assert plan.is_copier
    assert not replace(plan, model="gpt-oss-20b").is_copier


def test_the_bounds_of_a_soak_stand_in_the_readme() -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    (text,) = re.findall(r"^\*\*`bench soak`\*\*.*?(?=^nano on two cores, 8)", readme, re.M | re.S)
    text = " ".join(text.split())
    assert f"`--requests {bench_soak.REQUESTS}`, `--at-once {bench_soak.AT_ONCE}`" in text
    assert f"by {len(soak.KEYS)} keys".replace("3", "three") in text
    assert LEAVING == 0.25
    assert "In a quarter of the requests" in text
    assert f"takes more than {soak.ANSWER_LIMIT_S:.0f} s" in text
    assert f"of the other copies {MIN_COPIED:.1%} must".replace("%", " %") in text
    assert f"has seen {MAX_BAD} bad replies" in text
    assert f"(nano's: {soak.NANO_KV_GIB} GiB)" in text
    assert f"From {TARGET_MINUTES:g} minutes on" in text
    assert f"the rest may grow by {TARGET_GROWTH:.0%}".replace("%", " %") in text
