"""`verger models`: the catalogue, what of it is on this machine, and what would fit."""

from collections.abc import Iterator
from contextlib import suppress
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from msgspec import Struct

from verger import paths
from verger.catalogue import (
    GB,
    Model,
    ModelPlaces,
    load_catalogue,
    needed_machine,
    pull_command,
)
from verger.cli.machine import machine_memory, model_places
from verger.memory_fit import GIB, MachineMemory

SCHEMA_VERSION = 2


class State(StrEnum):
    """How much of a model lies here."""

    PRESENT = "present"
    """Complete and undamaged."""
    PARTIAL = "partial"
    """A download that has not ended, or a folder that lacks something."""
    ABSENT = "absent"


class ModelRow(Struct, frozen=True, kw_only=True):
    """One line of the listing."""

    id: str
    description: str
    state: State
    weight_bytes: int
    held_bytes: int
    """What lies here of it."""
    needed_bytes: int
    """Of memory: weights, a useful KV cache, what a step computes in."""
    is_fitting: bool
    fit: str
    """Why it fits this machine, or does not."""
    folder: str
    next_step: str


def models(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """List the models: which are present, which fit this machine, how to get one."""
    places, memory = model_places(), machine_memory()
    catalogue = load_catalogue(paths.catalogue_dir())
    rows = [model_row(model, places, memory) for model in catalogue.values()]
    if as_json:
        body = {
            "schema_version": SCHEMA_VERSION,
            "memory_bytes": memory.total_bytes,
            "usable_bytes": memory.usable_bytes,
            "models": rows,
        }
        print(msgspec.json.format(msgspec.json.encode(body)).decode())
        return
    print(
        f"This machine has {memory.total_bytes / GIB:.1f} GiB of memory, of which a model may take "
        f"{memory.usable_bytes / GIB:.1f} GiB; models lie in {places.models_dir}"
    )
    for row in rows:
        print(f"\n{row.id}: {row.description}\n  {_size(row)}\n  {row.fit}\n  {row.next_step}")


def model_row(model: Model, places: ModelPlaces, memory: MachineMemory) -> ModelRow:
    """What there is to say of one model on this machine."""
    state, is_fitting = _state(model, places), model.fits(memory)
    return ModelRow(
        id=model.id,
        description=model.description,
        state=state,
        weight_bytes=model.weight_bytes,
        held_bytes=sum(_sizes([places.folder(model), places.partial_folder(model)])),
        needed_bytes=model.need.total_bytes,
        is_fitting=is_fitting,
        fit=_fit(model, memory),
        folder=str(places.folder(model)),
        next_step=_next_step(model, state, is_fitting=is_fitting),
    )


def _state(model: Model, places: ModelPlaces) -> State:
    if places.is_complete(model):
        return State.PRESENT
    folders = (places.folder(model), places.partial_folder(model))
    return State.PARTIAL if any(folder.exists() for folder in folders) else State.ABSENT


def _sizes(folders: list[Path]) -> Iterator[int]:
    for file in (file for folder in folders for file in folder.rglob("*")):
        # A download renames its files while they are looked at.
        with suppress(OSError):
            if file.is_file():
                yield file.stat().st_size


def _size(row: ModelRow) -> str:
    whole = f"{row.weight_bytes / GB:.3g} GB"
    if row.state is State.PARTIAL:
        return f"partial, {row.held_bytes / GB:.3g} of {whole}"
    return f"{row.state}, {whole}"


def _fit(model: Model, memory: MachineMemory) -> str:
    if model.fits(memory):
        return f"fits: it needs {model.need.total_bytes / GIB:.1f} GiB of memory"
    return f"{model.need.shortage(model.id, memory)}: it takes {needed_machine(model)}"


def _next_step(model: Model, state: State, *, is_fitting: bool) -> str:
    if not is_fitting:
        return "another model, or another machine"
    if state is State.PRESENT:
        return f"serve it: verger serve --model {model.id}"
    if model.repository is None:
        return "part of this installation is missing: install Verger again"
    verb = "get the rest" if state is State.PARTIAL else "get it"
    return f"{verb}: {pull_command(model)}"
