"""`verger config`: each setting, its value and where the value came from."""

from pathlib import Path
from typing import Annotated

import msgspec
import typer

from verger.config import load_config

SCHEMA_VERSION = 1


def config(
    file: Annotated[
        Path | None,
        typer.Option("--config", help="Read this file instead of the one in VERGER_HOME."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show every setting, its value and where it came from."""
    settings = load_config(file=file).settings
    if as_json:
        body = {"schema_version": SCHEMA_VERSION, "settings": settings}
        print(msgspec.json.format(msgspec.json.encode(body)).decode())
        return
    width = max(map(len, settings))
    for key, setting in settings.items():
        value = msgspec.json.encode(setting.value).decode()
        print(f"{key:{width}}  {value:15}  {setting.origin}")
