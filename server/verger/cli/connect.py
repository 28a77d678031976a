"""`verger connect`: a client's configuration with the real address, model and context length.

Printed, or with --write put into the client's own files: JSON is merged, YAML is written where
there is none yet and else beside it. No key is ever written: the entries refer to the environment.
"""

import sys
from pathlib import Path
from typing import Annotated

import typer

from verger import paths
from verger.cli.env import key_command
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
from verger.cli.private_file import write_private
from verger.connect.entries import Client, ClientFile, Facts, load_clients, nearest_name, render
from verger.connect.merge import Unmergeable, merge_json
from verger.errors import InstanceError

MAX_FILE_BYTES = 4 * 1024 * 1024
BACKUP_SUFFIX = ".before-verger"
CONFIG = "CONFIG/"
HOME = "~/"


def connect(
    client: Annotated[str, typer.Argument(help="Which client; a wrong one lists them all.")],
    name: NameArgument = None,
    url: UrlOption = None,
    write: Annotated[
        bool, typer.Option("--write", help="Put it into the client's configuration.")
    ] = False,
    timeout: TimeoutOption = BROWSE_S,
    interfaces: InterfacesOption = "",
) -> None:
    """Print or write a client's configuration for a server."""
    entry = _entry(client)
    opened = open_instance(Wanted(name, url, timeout, interfaces))
    filled = render(entry, _facts(opened))
    if write and filled.files:
        uses = [_write(file) for file in filled.files]
        print("\n".join(dict.fromkeys(use or filled.use.strip() for use in uses)))
    else:
        if write:
            _say(f"{entry.title} has no file that could be written; use this")
        _print(filled)
    if filled.note:
        _say(filled.note.strip())


def place(path: str) -> Path:
    """Where a path of an entry lies on this machine."""
    if path.startswith(CONFIG):
        return paths.user_config_dir() / path.removeprefix(CONFIG)
    return Path.home() / path.removeprefix(HOME)


def _entry(name: str) -> Client:
    clients = load_clients()
    for client in clients:
        if client.name == name:
            return client
    known = ", ".join(client.name for client in clients)
    raise typer.BadParameter(
        f"there is no {name!r}; the nearest is {nearest_name(name, clients)}. All: {known}",
        param_hint="CLIENT",
    )


def _facts(opened: Opened) -> Facts:
    cards = opened.session.models(opened.pin.key)
    if cards is None:
        raise InstanceError(
            f"{opened.pin.name} asks for a key before it says what it serves: "
            f"{key_command(opened.pin)}"
        )
    if not cards or cards[0].context_length <= 0:
        raise InstanceError(f"{opened.pin.name} does not say what it serves")
    return Facts(opened.pin.address, cards[0].id, cards[0].context_length)


def _print(client: Client) -> None:
    for file in client.files:
        print(f"# {place(file.path)}\n{file.content}")
    if client.files:
        print("# then")
    print(client.use, end="")


def _write(file: ClientFile) -> str:
    """Bring one file up to date; returns the command that is needed because of it, if any."""
    path = place(file.path)
    existing = _read(path)
    if existing is None:
        _save(path, file.content, None)
    elif file.format == "yaml":
        return _write_beside(file, path, existing)
    else:
        try:
            _save(path, merge_json(existing, file.content), existing)
        except Unmergeable as obstacle:
            print(f"# {path}\n{file.content}")
            raise InstanceError(
                f"{path} was left alone: {obstacle}. Put into it by hand what is printed above"
            ) from None
    return ""


def _write_beside(file: ClientFile, path: Path, existing: str) -> str:
    """YAML with its comments and anchors cannot be merged for sure."""
    if file.content.strip() in existing:
        _say(f"{path} holds this already")
        return ""
    beside = place(file.beside)
    _say(f"{path} was left alone, since YAML cannot be merged for sure")
    _save(beside, file.content, _read(beside))
    return file.beside_use


def _save(path: Path, content: str, existing: str | None) -> None:
    if content == existing:
        _say(f"{path} holds this already")
        return
    try:
        if existing is not None:
            backup = path.with_name(path.name + BACKUP_SUFFIX)
            write_private(backup, existing.encode())
            _say(f"what was in {path} is kept as {backup}")
        write_private(path, content.encode())
    except OSError as error:
        raise InstanceError(f"cannot write {path}: {error.strerror}") from None
    _say(f"wrote {path}")


def _read(path: Path) -> str | None:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
        if len(content) > MAX_FILE_BYTES:
            raise InstanceError(f"{path} was left alone: it is longer than {MAX_FILE_BYTES} bytes")
        return content.decode()
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise InstanceError(f"{path} was left alone: {error}") from None


def _say(text: str) -> None:
    print(f"verger: {text}", file=sys.stderr)
