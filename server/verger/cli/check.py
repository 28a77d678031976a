"""`verger providers check`: can each configured provider be used, and if not, what is to be done?

All are asked at once. Needs no running server; it costs what some twenty tokens of each cost.
"""

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from verger import paths
from verger.cli.assumed import shipped_and_fetched
from verger.config import load_config
from verger.errors import EXIT_CANNOT_START

if TYPE_CHECKING:
    from verger.gateway.provider_check import Check
    from verger.gateway.providers import Provider

SCHEMA_VERSION = 1


def check(
    config: Annotated[
        Path | None,
        typer.Option(help="Read this file instead of config.toml in VERGER_HOME."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Ask each configured provider for a few tokens, and say what is wrong."""
    from verger.gateway.providers import load_kinds, load_providers

    configured = load_config(file=config).providers
    loaded = load_providers(
        configured, load_kinds(paths.providers_dir()), paths.home(), shipped_and_fetched()
    )
    checks = asyncio.run(_check_all(loaded))
    if as_json:
        body = {"schema_version": SCHEMA_VERSION, "providers": checks}
        print(msgspec.json.format(msgspec.json.encode(body)).decode())
    else:
        _print(checks)
    if not all(one.is_usable for one in checks):
        raise typer.Exit(EXIT_CANNOT_START)


async def _check_all(loaded: "tuple[Provider, ...]") -> "list[Check]":
    # Imported late: httpx takes a tenth of a second.
    from verger.gateway.backends.cloud import CloudBackend
    from verger.gateway.provider_check import check_provider

    backend = CloudBackend()
    try:
        return await asyncio.gather(*(check_provider(backend, provider) for provider in loaded))
    finally:
        await backend.close()


def _print(checks: "list[Check]") -> None:
    """Problems first."""
    if not checks:
        print("No provider is configured: add a [[providers]] table to config.toml.")
    for one in sorted(checks, key=lambda one: one.is_usable):
        state = f"answers as {one.model}" if one.is_usable else f"unusable: {one.problem}"
        print(f"{one.provider} ({one.kind}): {state}")
