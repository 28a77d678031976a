"""What the tests of `verger env` do again and again."""

import subprocess
from pathlib import Path

from tests.command_line import Outcome, Verger
from verger import paths
from verger.cli.pins import Pin, load_pins

KEY = "vg-abc-0123456789"


def variables(outcome: Outcome) -> dict[str, str]:
    """What a POSIX shell has in its environment after `eval`."""
    assert outcome.status == 0, outcome.err
    program = f"{outcome.out}\nenv"
    command = ["sh", "-c", program]
    printed = subprocess.run(command, env={}, capture_output=True, text=True, check=True).stdout
    return dict(line.split("=", 1) for line in printed.splitlines() if "_" in line.split("=")[0])


def pin_of(name: str) -> Pin:
    pin = load_pins(paths.pins_file()).find(name)
    assert pin is not None
    return pin


def give_key(verger: Verger, folder: Path, *arguments: str, key: str = KEY) -> Outcome:
    file = folder / "key"
    file.write_text(f"{key}\n")
    return verger("env", *arguments, "--key-file", str(file))
