"""`verger providers`: those who sell tokens: can they be used, for how much."""

import typer

from verger.cli.check import check
from verger.cli.rank import rank
from verger.cli.refresh import refresh

providers = typer.Typer(help="Check and compare those who sell tokens.", no_args_is_help=True)

providers.command()(check)
providers.command()(rank)
providers.command()(refresh)
