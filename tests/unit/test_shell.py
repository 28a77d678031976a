"""Quoting for shells: a value arrives as it is, whatever it holds, and never as code."""

import shutil
import subprocess

import pytest

from verger.cli.shell import Shell, assignment

VALUES = [
    "http://office-mini.local:8374/v1",
    "http://[fd00::1]:8374/v1",
    "a'b",
    "'; touch owned; '",
    "$(touch owned) `touch owned` $HOME ${HOME} !!",
    'back\\slash \\\' "double"',
    "‘left’ ‚low‛",
    "",
]
RUN = {
    Shell.SH: ["sh", "-c"],
    Shell.FISH: ["fish", "--no-config", "-c"],
    Shell.POWERSHELL: ["pwsh", "-NoProfile", "-Command"],
}
SHOW = {Shell.POWERSHELL: "[Console]::Out.Write($env:V)"}


@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("shell", Shell)
def test_a_value_arrives_as_it_is(shell: Shell, value: str) -> None:
    program, *options = RUN[shell]
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not installed")
    script = f"{assignment(shell, 'V', value)}\n{SHOW.get(shell, 'printenv V')}"
    done = subprocess.run([program, *options, script], capture_output=True, text=True, check=True)
    assert done.stdout.removesuffix("\n") == value


@pytest.mark.parametrize(
    ("shell", "line"),
    [
        (Shell.SH, "export V='a'\\''\\b'"),
        (Shell.FISH, "set -gx V 'a\\'\\\\b'"),
        (Shell.POWERSHELL, "$env:V = 'a''\\b'"),
    ],
)
def test_quotes_and_backslashes(shell: Shell, line: str) -> None:
    assert assignment(shell, "V", "a'\\b") == line


def test_powershell_takes_typographic_quotes_for_quotes() -> None:
    assert assignment(Shell.POWERSHELL, "V", "a’b") == "$env:V = 'a’’b'"


@pytest.mark.parametrize("value", ["a\nb", "a\x1b[2J", "a\0b"])
def test_what_no_quotes_make_harmless_is_a_defect(value: str) -> None:
    with pytest.raises(AssertionError):
        assignment(Shell.SH, "V", value)
