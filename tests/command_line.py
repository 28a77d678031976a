"""Runs `verger` as a person would, in the test's own process; behind the fixture `verger`."""

import sys
from collections.abc import Callable
from dataclasses import dataclass

import pytest


@dataclass(frozen=True)
class Outcome:
    """What a command returned and printed."""

    status: int
    out: str
    err: str


Verger = Callable[..., Outcome]


def run_verger(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str
) -> Outcome:
    """One command, to its end."""
    from verger.cli import main as cli

    monkeypatch.setattr(sys, "argv", ["verger", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    printed = capsys.readouterr()
    return Outcome(int(ended.value.code or 0), printed.out, printed.err)
