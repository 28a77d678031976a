"""The models that Verger knows, and the choice of the one to serve.

Called by the CLI; the files are models/*.toml. Must not know HTTP, MLX or how a folder's files
are checked (model_folder.py does that).
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from verger.errors import ConfigError, ModelFolderError
from verger.memory_fit import MachineMemory, Need, smallest_mac_gib
from verger.model_folder import ModelFolder, check_model_folder

EMBEDDED_ID = "nano"
AUTO = "auto"
GB = 1_000_000_000


class SamplingDefaults(Struct, frozen=True, forbid_unknown_fields=True):
    """What a request gets for the sampling parameters that it does not name."""

    temperature: Annotated[float, Meta(ge=0, le=2)] = 1.0
    top_p: Annotated[float, Meta(gt=0, le=1)] = 1.0
    top_k: Annotated[int, Meta(ge=0)] = 0
    min_p: Annotated[float, Meta(ge=0, le=1)] = 0.0


class Model(Struct, frozen=True, forbid_unknown_fields=True):
    """One file of the catalogue."""

    id: str
    description: str
    weight_bytes: int
    step_bytes: int
    """What the engine keeps free to compute in, as engine/device/memory.py counts it."""
    context_tokens: int
    kv_bytes_per_token: int
    """The full-attention layers' growth, at two bytes a value."""
    snapshot_bytes: int
    """The sliding layers' last window: fixed, whatever the context."""
    repository: str | None = None
    """Where the weights are published; None for the model that ships inside Verger."""
    revision: str = "main"
    sampling: SamplingDefaults = SamplingDefaults()

    @property
    def need(self) -> Need:
        """The memory that it takes to be of use."""
        return Need.of(
            self.weight_bytes, self.kv_bytes_per_token, self.snapshot_bytes, self.step_bytes
        )

    def fits(self, memory: MachineMemory) -> bool:
        """Whether a machine with that much memory can serve the model."""
        return self.need.fits(memory)


Catalogue = Mapping[str, Model]


@dataclass(frozen=True, slots=True)
class ModelPlaces:
    """Where models lie: downloads, one folder per id, and the embedded one."""

    models_dir: Path
    nano_dir: Path

    def folder(self, model: Model) -> Path:
        """The folder that holds, or would hold, the model."""
        return self.nano_dir if model.id == EMBEDDED_ID else self.models_dir / model.id

    def partial_folder(self, model: Model) -> Path:
        """Where a download collects the files until all are there."""
        return self.models_dir / f"{model.id}.partial"

    def is_complete(self, model: Model) -> bool:
        """Whether all of the model is there; false while a download is on its way."""
        try:
            check_model_folder(self.folder(model))
        except ModelFolderError:
            return False
        return True


@dataclass(frozen=True, slots=True)
class ModelChoice:
    """The model to serve; its folder has been checked."""

    id: str
    folder: ModelFolder
    model: Model | None
    """None for a folder that the catalogue does not know."""
    notice: str | None = None
    """What the person at the terminal should be told about the choice."""

    @property
    def path(self) -> Path:
        """Where it is."""
        return self.folder.path

    @property
    def context_tokens(self) -> int:
        """What the folder's own config allows, or less where the catalogue says so."""
        known = self.model.context_tokens if self.model else self.folder.context_tokens
        return min(known, self.folder.context_tokens)


@dataclass(frozen=True, slots=True)
class AbsentModel:
    """The model that is to be served once it has been fetched; it would fit."""

    model: Model
    path: Path
    """Where it will be."""
    reason: str
    """What is missing there, and how to get it."""

    @property
    def id(self) -> str:
        """As the catalogue has it."""
        return self.model.id

    @property
    def context_tokens(self) -> int:
        """What the catalogue says; the folder may come to say less."""
        return self.model.context_tokens


def load_catalogue(folder: Path) -> Catalogue:
    """Read models/*.toml, smallest model first. Raises ConfigError for a damaged file."""
    models = [_load(path) for path in folder.glob("*.toml")]
    return {model.id: model for model in sorted(models, key=lambda model: model.weight_bytes)}


def resolve_model(
    requested: str,
    catalogue: Catalogue,
    places: ModelPlaces,
    *,
    memory: MachineMemory,
    is_trial: bool,
) -> ModelChoice:
    """Turn what --model says, a catalogue id, a folder or `auto`, into one checked folder.

    Raises ModelFolderError, whose text says how to get a model, when there is none to serve.
    """
    found = find_model(requested, catalogue, places, memory=memory, is_trial=is_trial)
    if isinstance(found, AbsentModel):
        raise ModelFolderError(found.reason)
    return found


def find_model(
    requested: str,
    catalogue: Catalogue,
    places: ModelPlaces,
    *,
    memory: MachineMemory,
    is_trial: bool,
) -> ModelChoice | AbsentModel:
    """As `resolve_model`, but a model that can be fetched may be absent.

    In a trial `auto` falls back to the embedded model.
    """
    if requested == AUTO:
        return _largest_present(catalogue, places, memory, is_trial)
    if requested in catalogue:
        model = catalogue[requested]
        require_fit(model, catalogue, memory)
        return _catalogued(model, places)
    folder = Path(requested).expanduser()
    if os.sep in requested or folder.is_dir():
        folder = folder.resolve()
        return ModelChoice(id=folder.name, folder=check_model_folder(folder), model=None)
    raise ModelFolderError(
        f"there is no model {requested!r}: --model takes one of {', '.join(catalogue)}, "
        f"{AUTO}, or the path of a model's folder"
    )


def require_fit(model: Model, catalogue: Catalogue, memory: MachineMemory) -> None:
    """Raises ModelFolderError, with the numbers and what would fit, unless the model fits."""
    if model.fits(memory):
        return
    shortage = model.need.shortage(model.id, memory)
    raise ModelFolderError(f"{shortage}. {_alternative(catalogue, memory)}")


def needed_machine(model: Model) -> str:
    """The smallest Mac for a model, in words."""
    size_gib = smallest_mac_gib(model.need)
    return "a larger machine" if size_gib is None else f"a Mac with {size_gib} GB"


def pull_command(model: Model) -> str:
    """The shell command that fetches the weights to where they are looked for."""
    return f"verger pull {model.id}"


def _load(path: Path) -> Model:
    try:
        model = msgspec.toml.decode(path.read_bytes(), type=Model)
    except (OSError, msgspec.DecodeError) as error:
        raise ConfigError(f"{path}: {error}") from error
    if model.id != path.stem:
        raise ConfigError(f"{path}: id {model.id!r} differs from the file's name")
    return model


def _catalogued(model: Model, places: ModelPlaces) -> ModelChoice | AbsentModel:
    folder = places.folder(model)
    if model.repository and not folder.exists():
        return AbsentModel(model, folder, f"{model.id} is not in {folder}; {_to_get(model)}")
    try:
        return ModelChoice(id=model.id, folder=check_model_folder(folder), model=model)
    except ModelFolderError as error:
        if not model.repository:
            raise
        return AbsentModel(model, folder, f"{error}; {_to_get(model)}")


def _to_get(model: Model) -> str:
    return f"to get it ({model.weight_bytes / GB:.1f} GB): {pull_command(model)}"


def _largest_present(
    catalogue: Catalogue, places: ModelPlaces, memory: MachineMemory, is_trial: bool
) -> ModelChoice | AbsentModel:
    """The largest complete model that fits, else the embedded one with a notice saying so; else,
    where that is not to be served, the largest that would fit."""
    fitting = fitting_models(catalogue, memory)
    for model in fitting:
        if places.is_complete(model):
            return _catalogued(model, places)
    if is_trial:
        return _embedded(catalogue, places, fitting)
    reason = (
        f"no complete model is in {places.models_dir}, and the embedded test model is "
        f"served on loopback only, and by no service. {_advice(fitting)}"
    )
    if not fitting:
        raise ModelFolderError(reason)
    return AbsentModel(fitting[0], places.folder(fitting[0]), reason)


def _embedded(catalogue: Catalogue, places: ModelPlaces, fitting: list[Model]) -> ModelChoice:
    folder = check_model_folder(places.nano_dir)
    notice = (
        f"no model is present: this is {EMBEDDED_ID}, the embedded test model. {_advice(fitting)}"
    )
    return ModelChoice(EMBEDDED_ID, folder, catalogue[EMBEDDED_ID], notice)


def fitting_models(catalogue: Catalogue, memory: MachineMemory) -> list[Model]:
    """The real models that the machine can serve, largest first."""
    models = [model for model in catalogue.values() if model.repository and model.fits(memory)]
    return sorted(models, key=lambda model: model.weight_bytes, reverse=True)


def _advice(fitting: list[Model]) -> str:
    if not fitting:
        return "This machine has too little memory for a real one."
    return f"To get a real one: {pull_command(fitting[0])}"


def _alternative(catalogue: Catalogue, memory: MachineMemory) -> str:
    fitting = fitting_models(catalogue, memory)
    if not fitting:
        return "No model of the catalogue fits but the embedded test model."
    return f"The largest that fits is {fitting[0].id}: {pull_command(fitting[0])}"
