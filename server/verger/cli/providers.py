"""`verger providers`: what is known of those who sell tokens."""

import typer

from verger.cli.rank import rank
from verger.cli.refresh import refresh

providers = typer.Typer(help="Compare those who sell tokens.", no_args_is_help=True)


@providers.callback()
def _group() -> None:
    """Without it typer makes a single command of the group."""


providers.command()(rank)
providers.command()(refresh)
