"""scripts/first_hour with commands that only pretend: parts, their order, the page, panics."""

import json
import re
from collections.abc import Sequence
from pathlib import Path

import pytest

from scripts.first_hour import BENCHES, PARTS, Means, main, parse, parts
from scripts.hour.page import page
from scripts.hour.panics import Before
from scripts.hour.parts import Result
from scripts.hour.run import Done

FLAGS = "model quick minutes hours second_machine service only out".split()
NO_PANIC = {"check": "last panic", "level": "ok", "why": "none within 7 days", "fix": None}
PANIC = {"check": "last panic", "level": "warn", "why": "macOS panicked on 2026-11-20", "fix": "x"}
ONLY_A_MAC = {"check": "last panic", "level": "skipped", "why": "only a Mac has this", "fix": None}


class Machine:
    """Answers each command; doctor's findings come one after the other, the last one for ever."""

    def __init__(self, *panics: object) -> None:
        self.panics = list(panics) or [ONLY_A_MAC]
        self.failing = ""
        self.commands: list[tuple[str, ...]] = []

    def run(self, command: Sequence[str], limit_s: float) -> Done:
        assert limit_s > 0
        self.commands.append(tuple(command[4:]))
        if self.failing and self.failing in command:
            return Done(3, err="first\nverger: no memory\n")
        if "doctor" in command:
            finding = self.panics.pop(0) if len(self.panics) > 1 else self.panics[0]
            return Done(7, json.dumps({"findings": [{"check": "sleep"}, finding]}))
        return Done(0, '{"schema_version": 1}')

    @property
    def means(self) -> Means:
        return Means(self.run, id_of=lambda url: None)


def body_of(folder: Path) -> dict[str, object]:
    read = json.loads((folder / "first-hour.json").read_text())
    assert isinstance(read, dict)
    return read


def states_of(folder: Path) -> dict[str, str]:
    found = body_of(folder)["parts"]
    assert isinstance(found, list)
    return {part["name"]: part["state"] for part in found}


def test_a_part_that_fails_is_recorded_and_the_rest_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    machine = Machine()
    machine.failing = "overhead"
    assert main(["--quick", "--out", str(tmp_path)], machine.means) == 1
    states = states_of(tmp_path)
    assert list(states) == list(PARTS)
    assert states["overhead"] == "failed"
    skipped = {name for name, state in states.items() if state == "skipped"}
    assert skipped == {"process-type", "power", "bonjour", "panics"}
    assert body_of(tmp_path)["schema_version"] == 2
    assert body_of(tmp_path)["running"] is None
    assert "verger: no memory" in capsys.readouterr().out
    text = (tmp_path / "first-hour.md").read_text()
    assert text.index("overhead failed: verger: no memory") < text.index("| what |")


def test_what_only_a_mac_has_is_skipped_and_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["--out", str(tmp_path)], Machine().means) == 0


def test_the_soak_takes_as_long_as_it_is_told(tmp_path: Path) -> None:
    def soaked(*arguments: str) -> tuple[str, ...]:
        machine = Machine()
        main(
            ["--only", "memory", "--model", "m", "--out", str(tmp_path), *arguments], machine.means
        )
        return machine.commands[-1]

    asked = ("bench", "soak", "--model", "m", "--minutes", "60", "--json", "-")
    assert soaked() == asked
    assert soaked("--hours", "8")[5] == "480"
    assert soaked("--minutes", "5")[5] == "5"
    assert soaked("--quick")[4:7] == ("--quick", "--minutes", "1")


@pytest.mark.parametrize("words", ["--minutes 0", "--hours 24.1", "--only fit,nothing"])
def test_a_command_line_that_makes_no_sense_is_refused(words: str) -> None:
    with pytest.raises(SystemExit, match="2"):
        parse(words.split())
    assert parse(["--hours", "24"]).soak_minutes == 1440


def test_only_the_wanted_parts_run_and_in_their_order() -> None:
    given = parse(["--only", "panics,rates,fit"])
    machine = Machine()
    assert [part.name for part in parts(given, machine.means, Before(None))] == [
        "fit",
        "rates",
        "panics",
    ]


def test_every_bench_is_quick_once_if_quick_is_asked() -> None:
    machine = Machine()
    given = parse(["--quick", "--only", ",".join(BENCHES)])
    for part in parts(given, machine.means, Before(None)):
        part.ask()
    assert [command.count("--quick") for command in machine.commands] == [1] * len(BENCHES)


def test_a_panic_that_is_new_fails_and_an_old_one_does_not(tmp_path: Path) -> None:
    only = ["--only", "panics", "--out", str(tmp_path)]
    assert main(only, Machine(PANIC, PANIC).means) == 0
    assert main(only, Machine(PANIC, NO_PANIC).means) == 0
    assert main(only, Machine(NO_PANIC, PANIC).means) == 1
    text = (tmp_path / "first-hour.md").read_text()
    failed = "panics failed: new since the start: macOS panicked on 2026-11-20"
    assert f'<strong style="color: red">{failed}</strong>' in text


def test_a_panic_that_took_the_run_before_down_is_found_by_the_next(tmp_path: Path) -> None:
    """A panic ends the script as well: only what it has written by then can tell."""

    def dies(command: Sequence[str], limit_s: float) -> Done:
        if "stall" in command:
            raise SystemExit
        return Machine(NO_PANIC).run(command, limit_s)

    only = ["--only", "stall,panics", "--out", str(tmp_path)]
    with pytest.raises(SystemExit):
        main(only, Means(dies))
    assert body_of(tmp_path)["running"] == "stall"
    assert "`stall` runs now" in (tmp_path / "first-hour.md").read_text()
    assert main(only, Machine(PANIC).means) == 1
    text = (tmp_path / "first-hour.md").read_text()
    assert "new since the start, while `stall` ran: macOS panicked on 2026-11-20" in text
    # That one finished, so the next goes by what it finds itself.
    assert main(only, Machine(PANIC).means) == 0


def test_an_old_panic_is_not_taken_for_new_where_nothing_was_noted(tmp_path: Path) -> None:
    """A run of other parts that was interrupted has noted none; doctor may fail at the start."""
    file = tmp_path / "first-hour.json"
    file.write_text('{"running": "rates", "panic_before": null}')
    only = ["--only", "panics", "--out", str(tmp_path)]
    assert main(only, Machine(PANIC).means) == 0
    file.write_text("cut off")
    assert main(only, Machine(PANIC).means) == 0
    assert main(only, Machine("no finding", PANIC).means) == 0
    assert states_of(tmp_path) == {"panics": "skipped"}


RATES = {
    "load": {"ready_s": 9.0, "engine_s": 7.25, "device": "M4"},
    "prefill": [{"context_tokens": 1000, "tok_s": 812.3, "ttft_s": 1.25}],
    "decode": [
        {"batch": 4, "context_tokens": 1000, "tok_s": 180.0, "stream_tok_s": 45.0, "itl_ms": 22.0}
    ],
    "skipped": [{"context_tokens": 32000, "batch": 16, "reason": "no room"}],
}
SOAK = {
    "requests": 900,
    "minutes": 60.0,
    "is_sound": True,
    "is_restored": False,
    "remains": ["1 permits of the key agents"],
    "counts": {"answered": 899, "left": 1},
    "memory": {
        "gateway": {"warm_bytes": 100 << 20, "end_bytes": 110 << 20},
        "engine": {"warm_bytes": 900 << 20, "end_bytes": 2000 << 20, "bounded_bytes": 250 << 20},
        "is_met": False,
    },
}
STALL = {"disturbed": {"p99_ms": 900.0}, "allowed_ms": 361.0, "is_gap_met": False}
MODELS = {"models": [{"id": "m", "is_fitting": True, "needed_bytes": 2 << 30, "state": "absent"}]}
POWER = {"idle_w": 4.0, "active_w": 40.0, "j_per_token": 0.2, "batch": 8, "of": "the chip"}


def test_the_page_begins_with_what_is_wrong_and_then_has_the_figures() -> None:
    answers: dict[str, object] = {"fit": MODELS, "rates": RATES, "stall": STALL}
    answers |= {"process-type": {"interactive_to_background": 7.9}, "power": POWER, "memory": SOAK}
    text = page("m", [Result(name, "done", "", 1.0, one) for name, one in answers.items()], None)
    start, _, rest = text.partition("| what |")
    assert "stall: gaps beside a prompt: p99 900 ms, at most 361" in start
    assert "memory: engine: 900 MiB when warm, 2000 MiB at the end, +250 MiB by KV" in start
    assert "soak: the server afterwards: 1 permits of the key agents" in start
    for line in (
        "| fit: m | fits, needs 2.0 GiB, absent |  |",
        "| load: start to /readyz | 9.0 s, of it 7.2 s in the engine, on M4 |  |",
        "| prefill of 1000 tokens | 812 tok/s, 1.25 s to the first token |  |",
        "| decode, 4 streams behind 1000 tokens | 180 tok/s, 45.0 each, 22 ms between tokens |  |",
        "| rates: 16 streams at 32000 tokens | skipped: no room |  |",
        "| ProcessType: decode as Interactive ÷ background | 7.90 |  |",
        "| power: 8 streams decoding | 40.0 W, 0.20 J per token |  |",
        "| soak: 900 requests in 60 minutes | 899 answered, 1 left | met |",
    ):
        assert line in rest
    assert '"is_gap_met": false' in rest


@pytest.mark.parametrize("answer", [{}, {"models": 5, "decode": [5], "memory": None}, None])
def test_an_answer_of_another_shape_makes_no_figure_and_no_error(answer: object) -> None:
    results = [Result(name, "done", "", 1.0, answer) for name in PARTS]
    assert "# The first hour" in page("m", results, None)


def test_the_page_of_a_first_hour_without_problems_says_so() -> None:
    assert "Nothing failed." in page("m", [Result("fit", "done", "", 1.0, MODELS)], None)


def test_every_part_and_flag_stands_in_the_readme() -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    (section,) = re.findall(r"^### The first hour on a new Mac\n(.*?)^## ", readme, re.M | re.S)
    (table,) = re.findall(r"^\| part .*\n\|[-|]+\n((?:\|.*\n)+)", section, re.M)
    named = [row.split("|")[1] for row in table.splitlines()]
    assert [name for cell in named for name in re.findall(r"`([^`]+)`", cell)] == list(PARTS)
    flags = {f"--{name.replace('_', '-')}" for name in FLAGS}
    assert flags <= set(re.findall(r"--[a-z-]+", section))
