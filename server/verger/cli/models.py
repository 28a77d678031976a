"""`verger models`: the catalogue, what of it is on this machine, and what would fit."""

from typing import Annotated

import msgspec
import typer
from msgspec import Struct

from verger import paths
from verger.catalogue import GB, Model, ModelPlaces, download_command, load_catalogue
from verger.cli.machine import memory_bytes, model_places

SCHEMA_VERSION = 1


class ModelRow(Struct, frozen=True):
    """One line of the listing."""

    id: str
    description: str
    weight_bytes: int
    min_memory_bytes: int
    folder: str
    is_present: bool
    """Complete and undamaged in `folder`."""
    is_fitting: bool
    """This machine has the memory for it."""
    next_step: str


def models(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """List the models: which are present, which fit this machine, how to get one."""
    places, memory = model_places(), memory_bytes()
    catalogue = load_catalogue(paths.catalogue_dir())
    rows = [_row(model, places, memory) for model in catalogue.values()]
    if as_json:
        body = {"schema_version": SCHEMA_VERSION, "memory_bytes": memory, "models": rows}
        print(msgspec.json.format(msgspec.json.encode(body)).decode())
        return
    print(f"This machine has {memory / GB:.1f} GB of memory; models lie in {places.models_dir}")
    for row in rows:
        state = "present" if row.is_present else "absent"
        print(f"\n{row.id}: {row.description}\n  {state}, {row.weight_bytes / GB:.3g} GB")
        print(f"  {row.next_step}")


def _row(model: Model, places: ModelPlaces, memory: int) -> ModelRow:
    is_present, is_fitting = places.is_complete(model), model.fits(memory)
    return ModelRow(
        id=model.id,
        description=model.description,
        weight_bytes=model.weight_bytes,
        min_memory_bytes=model.min_memory_bytes,
        folder=str(places.folder(model)),
        is_present=is_present,
        is_fitting=is_fitting,
        next_step=_next_step(model, places, is_present=is_present, is_fitting=is_fitting),
    )


def _next_step(model: Model, places: ModelPlaces, *, is_present: bool, is_fitting: bool) -> str:
    if not is_fitting:
        return f"needs a machine with {model.min_memory_bytes / GB:.0f} GB of memory"
    if is_present:
        return f"serve it: verger serve --model {model.id}"
    if model.repository is None:
        return "part of this installation is missing: install Verger again"
    return f"get it: {download_command(model, places)}"
