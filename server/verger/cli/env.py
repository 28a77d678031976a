"""`verger env`: variables that point clients at a server, for `eval "$(verger env)"`.

Nothing but the assignments is printed on standard output. Both keys are always set, to `unused`
where none is stored: a key that is in the environment for somebody else must not be sent here.
"""

import dataclasses
import getpass
import sys
from pathlib import Path
from typing import Annotated

import typer
from msgspec.structs import replace

from verger import paths
from verger.cli.instances import (
    BROWSE_S,
    InterfacesOption,
    NameArgument,
    Opened,
    TimeoutOption,
    UrlOption,
    Wanted,
    open_instance,
)
from verger.cli.pins import MAX_KEY_CHARACTERS, TRUSTED, Pin, is_key
from verger.cli.shell import Shell, assignment, way_to_use
from verger.errors import InstanceError, Unreachable

NO_KEY = "unused"
STDIN = "-"
DEFAULT_SHELL = Shell.POWERSHELL if sys.platform == "win32" else Shell.SH


def env(
    name: NameArgument = None,
    url: UrlOption = None,
    shell: Annotated[Shell, typer.Option(help="Whose language to print.")] = DEFAULT_SHELL,
    key_file: Annotated[
        Path | None, typer.Option(help="Store the key in this file for this server.")
    ] = None,
    key: Annotated[
        str | None, typer.Option(metavar="-", help="With -: store the key read from stdin.")
    ] = None,
    repin: Annotated[
        bool, typer.Option("--repin", help="Accept that the server's identity has changed.")
    ] = False,
    timeout: TimeoutOption = BROWSE_S,
    interfaces: InterfacesOption = "",
) -> None:
    """Print the variables that clients read, for the shell: eval "$(verger env)"."""
    given = _given_key(key_file, key)
    opened = open_instance(Wanted(name, url, timeout, interfaces, repin))
    if given is not None:
        opened = _with_key(opened, given)
    for notice in _notices(opened):
        print(f"verger: {notice}", file=sys.stderr)
    if sys.stdout.isatty():
        print(f"verger: to set these: {way_to_use(shell)}", file=sys.stderr)
    address, stored = opened.pin.address, opened.pin.key or NO_KEY
    print(assignment(shell, "OPENAI_BASE_URL", address.base_url))
    print(assignment(shell, "OPENAI_API_KEY", stored))
    print(assignment(shell, "ANTHROPIC_BASE_URL", address.root_url))
    print(assignment(shell, "ANTHROPIC_API_KEY", stored))


def key_command(pin: Pin) -> str:
    """How to store a key for a server."""
    return f'verger env "{pin.name}" --key-file FILE'


def _given_key(key_file: Path | None, key: str | None) -> str | None:
    """The key to be stored. Never an argument: every process may read those."""
    if key not in (None, STDIN):
        raise typer.BadParameter(
            "a key in the arguments can be read by others: give --key - and the key on standard "
            "input, or --key-file",
            param_hint="--key",
        )
    if key is None and key_file is None:
        return None
    if key is not None and key_file is not None:
        raise typer.BadParameter("give one of --key and --key-file", param_hint="--key")
    text = _read_key(key_file).strip()
    if not is_key(text):
        raise typer.BadParameter(
            f"that is no key: one word, {MAX_KEY_CHARACTERS} characters at most",
            param_hint="--key" if key_file is None else "--key-file",
        )
    return text


def _read_key(key_file: Path | None) -> str:
    limit = MAX_KEY_CHARACTERS + 3  # And its end of line.
    if key_file is None:
        is_typed = sys.stdin.isatty()
        return getpass.getpass("Key: ") if is_typed else sys.stdin.readline(limit)
    try:
        with key_file.open(encoding="ascii", errors="replace") as file:
            return file.read(limit)
    except OSError as error:
        raise InstanceError(f"cannot read {key_file}: {error.strerror}") from None


def _with_key(opened: Opened, key: str) -> Opened:
    """Store a key that the server accepts."""
    if opened.session.models(key) is None:
        raise InstanceError(f"{opened.pin.name} refuses this key; nothing was stored")
    opened.pins.put(pin := replace(opened.pin, key=key))
    return dataclasses.replace(opened, pin=pin)


def _notices(opened: Opened) -> list[str]:
    pin, notices = opened.pin, []
    if opened.is_new:
        notices.append(
            f"first use of {pin.name} at {pin.address.root_url}: remembered its id {pin.id} in "
            f"{paths.pins_file()}"
        )
        if pin.certificate is None:
            notices.append("without TLS an id can be copied: it guards against mistakes only")
    if pin.certificate not in (None, TRUSTED):
        notices.append(
            "this system does not trust its certificate, only Verger's commands know it; clients "
            "have to be told: NODE_EXTRA_CA_CERTS for Node, SSL_CERT_FILE for Python"
        )
    if not opened.is_ready:
        notices.append(f"{pin.name} is not ready to answer now")
    return [*notices, *_notices_of_key(opened)]


def _notices_of_key(opened: Opened) -> list[str]:
    """Whether the key will do; a server that is too busy to say may still be pointed at."""
    pin = opened.pin
    try:
        if opened.session.models(pin.key) is not None:
            return []
    except Unreachable as error:
        return [str(error)]
    what = "refuses the stored key" if pin.key else "asks for a key"
    return [f"{pin.name} {what}: {key_command(pin)}"]
