"""CPU times as the systems list them."""

import os

import pytest

from verger.bench.processes import Process, parse_ps, parse_stat, processes


def test_a_line_of_proc_whose_name_has_parentheses() -> None:
    line = "812 (a (b) c) S 7 812 812 0 -1 4194560 9 0 0 0 150 50 3 4 20 0 1 0 12345 6 7"
    assert parse_stat(line, ticks_per_s=100) == Process(pid=812, parent_pid=7, cpu_s=2.0)


@pytest.mark.parametrize(
    ("time", "cpu_s"),
    [("0:01.25", 1.25), ("100:00.50", 6000.5), ("01:02:03", 3723.0), ("2-00:00:01", 172_801.0)],
)
def test_a_line_of_ps(time: str, cpu_s: float) -> None:
    assert parse_ps(f"  812     7 {time}") == Process(pid=812, parent_pid=7, cpu_s=cpu_s)


def test_this_process_is_among_the_processes() -> None:
    assert processes()[os.getpid()].parent_pid == os.getppid()
