"""What the commands of `verger bench` share: who is measured, running it, showing the report."""

import asyncio
import signal
import sys
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import msgspec
import typer

from verger import paths
from verger.catalogue import ModelChoice, load_catalogue, resolve_model
from verger.cli.machine import has_engine, machine_memory, model_places
from verger.errors import StartupError

if TYPE_CHECKING:
    from verger.bench.chat import Target
    from verger.bench.served import Own
    from verger.formats.vocabulary import Vocabulary

DEFAULT_MODEL = "nano"
MIN_ROWS = 16
"""What the server has by default."""

ModelOption = Annotated[
    str | None,
    typer.Option(help=f"A model of `verger models`, or a folder; by default {DEFAULT_MODEL}."),
]
UrlOption = Annotated[
    str | None,
    typer.Option(help="Measure this server, http://HOST:PORT/v1; --model is its name there."),
]
KeyFileOption = Annotated[Path | None, typer.Option(help="With --url: send the key in this file.")]
TokenizerOption = Annotated[
    str | None,
    typer.Option(
        help="With --url: the model here whose tokens are counted, by default "
        f"{DEFAULT_MODEL}; naming it says that the server has the same."
    ),
]
SeedOption = Annotated[int, typer.Option(help="Of all texts.")]
JsonOption = Annotated[
    Path | None, typer.Option(help="Also write JSON to this file; - prints it instead.")
]

R = TypeVar("R", bound=msgspec.Struct)


@dataclass(frozen=True, slots=True)
class Subject:
    """Who is measured: our own server or a running one, and the vocabulary to count with."""

    own: "Own | None"
    running: "Target | None"
    model: str
    vocabulary: "Vocabulary"
    has_models_vocabulary: bool
    """Whether it is known to be that of the model which is asked."""


def subject(
    url: str | None, model: str | None, key_file: Path | None, tokenizer: str | None, rows: int
) -> Subject:
    """From the options that `replay` and `stall` share. Raises BadParameter or StartupError."""
    # Imported late: no other command needs the tokenizer.
    from verger.bench.served import Own
    from verger.formats.vocabulary import Vocabulary

    if url is None and (key_file or tokenizer):
        raise typer.BadParameter("this needs --url", param_hint="--key-file, --tokenizer")
    running = None if url is None else _running(url, model, key_file)
    if running is None:
        require_engine()
    choice = choose((tokenizer if url else model) or DEFAULT_MODEL)
    file = choice.path / "tokenizer.json"
    return Subject(
        own=None if running else Own(model or DEFAULT_MODEL, max(MIN_ROWS, rows)),
        running=running,
        model=running.model if running else choice.id,
        vocabulary=Vocabulary.from_file_bytes(file.read_bytes()),
        has_models_vocabulary=url is None or tokenizer is not None,
    )


def require_engine() -> None:
    """Raises StartupError."""
    if not has_engine():
        raise StartupError(
            "the engine is not installed: run scripts/bench, or pip install 'verger[engine]'"
        )


def choose(model: str) -> ModelChoice:
    """A model that lies on this machine."""
    return resolve_model(
        model,
        load_catalogue(paths.catalogue_dir()),
        model_places(),
        memory=machine_memory(),
        is_trial=True,
    )


def run(measurement: Callable[[], Coroutine[None, None, R]]) -> R:
    """SIGTERM does what Ctrl-C does: the measurement unwinds and ends its children."""

    async def until_stopped() -> R:
        measuring = asyncio.current_task()
        assert measuring is not None
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, measuring.cancel)
        return await measurement()

    try:
        return asyncio.run(until_stopped())
    except asyncio.CancelledError:
        raise typer.Abort from None


def notify(text: str) -> None:
    """Progress, for who waits."""
    print(f"verger: {text} ...", file=sys.stderr)


def show(report: R, file: Path | None, print_report: Callable[[R], None]) -> None:
    """The table, or the JSON where that is to be printed; JSON in a file as well."""
    encoded = msgspec.json.format(msgspec.json.encode(report))
    if file == Path("-"):
        print(encoded.decode())
        return
    print_report(report)
    if file is not None:
        file.write_bytes(encoded + b"\n")
        print(f"Written to {file}")


def print_table(title: str, headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Numbers in columns."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    for cells in rows:
        table.add_row(*cells)
    Console().print(table)


def verdict(is_met: bool) -> str:
    """Of a target."""
    return "met" if is_met else "missed"


def place(url: str | None, machine: str, cores: int) -> str:
    """Where it was measured, and who, if not our own server."""
    return f"{url}, from {machine}, {cores} cores" if url else f"{machine}, {cores} cores"


def _running(url: str, model: str | None, key_file: Path | None) -> "Target":
    from verger.bench.chat import Target
    from verger.bench.client import parse_url

    if model is None:
        raise typer.BadParameter("--url needs --model, the model's name there", param_hint="--url")
    try:
        endpoint = parse_url(url)
    except ValueError:
        raise typer.BadParameter(
            f"{url} is no address such as http://localhost:8374/v1", param_hint="--url"
        ) from None
    return Target(endpoint, model, _key(key_file))


def _key(file: Path | None) -> str:
    if file is None:
        return ""
    try:
        key = file.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise StartupError(f"cannot read the key in {file}: {error}") from error
    if not key.isprintable() or " " in key:
        raise StartupError(f"{file} does not hold one key")
    return key
