"""The entry point `verger`: subcommands, and the edge where errors become exit codes.

Exit codes: 0 done, 1 a defect of ours, 2 wrong usage, else the error's own (one line on stderr).
Modules that cost time to import (the gateway, httpx) are imported by the command that needs them,
so that `verger --help` answers at once; MLX is never imported here.
"""

import sys
from typing import Annotated

import typer

from verger import __version__
from verger.cli.backup import backup, restore
from verger.cli.bench import bench
from verger.cli.config import config
from verger.cli.connect import connect
from verger.cli.cost import cost
from verger.cli.discover import discover
from verger.cli.doctor import doctor
from verger.cli.env import env
from verger.cli.keys import keys
from verger.cli.models import models
from verger.cli.providers import providers
from verger.cli.pull import pull
from verger.cli.serve import serve
from verger.cli.service import service, upgrade
from verger.cli.setup import setup
from verger.cli.usage import usage
from verger.errors import StartupError

app = typer.Typer(
    help="The office's own OpenAI endpoint: gpt-oss on a Mac's unified memory.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command()(serve)
app.command()(setup)
app.command()(pull)
app.command()(models)
app.command()(config)
app.command()(doctor)
app.command()(discover)
app.command()(env)
app.command()(connect)
app.add_typer(keys, name="keys")
app.add_typer(service, name="service")
app.command()(upgrade)
app.command()(backup)
app.command()(restore)
app.command()(usage)
app.command()(cost)
app.add_typer(providers, name="providers")
app.add_typer(bench, name="bench")


def _print_version(is_wanted: bool) -> None:
    if is_wanted:
        print(f"verger {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", is_eager=True, callback=_print_version, help="Print the version."
        ),
    ] = False,
) -> None:
    """Options that stand before the subcommand."""


def main() -> None:
    """Run the command line; what keeps Verger from starting costs one line, no traceback."""
    try:
        app()
    except StartupError as error:
        print(f"verger: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
