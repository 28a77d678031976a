"""Assignments of environment variables in the languages of three shells. Pure.

Called by `env`. Values are quoted whatever they hold: POSIX shell (XCU 2.2.2), fish, and PowerShell
(about_Quoting_Rules, which takes four typographic quotes for single ones).
"""

import re
from enum import Enum


class Shell(Enum):
    """Whose language."""

    SH = "sh"
    FISH = "fish"
    POWERSHELL = "powershell"


def assignment(shell: Shell, name: str, value: str) -> str:
    """One line that exports a variable. `value` is one line of text."""
    assert re.fullmatch(r"[A-Z][A-Z0-9_]*", name)
    assert value.isprintable(), "not even quotes make this harmless in a terminal"
    match shell:
        case Shell.SH:
            return "export {}='{}'".format(name, value.replace("'", "'\\''"))
        case Shell.FISH:
            return "set -gx {} '{}'".format(name, re.sub(r"[\\']", r"\\\g<0>", value))
        case Shell.POWERSHELL:
            return "$env:{} = '{}'".format(name, re.sub("['‘’‚‛]", r"\g<0>\g<0>", value))


def way_to_use(shell: Shell) -> str:
    """How a person has the shell read the lines."""
    match shell:
        case Shell.SH:
            return 'eval "$(verger env)"'
        case Shell.FISH:
            return "verger env --shell fish | source"
        case Shell.POWERSHELL:
            return "verger env --shell powershell | Out-String | Invoke-Expression"
