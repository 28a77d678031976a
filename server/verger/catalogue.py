"""The models that Verger knows, and the choice of the one to serve.

Called by the CLI; the files are models/*.toml. Must not know HTTP, MLX or how a folder's files
are checked (model_folder.py does that).
"""

import os
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from verger.errors import ConfigError, ModelFolderError
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
    min_memory_bytes: int
    """The smallest machine's unified memory: weights, a useful KV cache and the system."""
    context_tokens: int
    kv_bytes_per_token: int
    """The full-attention layers' growth, at two bytes a value."""
    snapshot_bytes: int
    """The sliding layers' last window: fixed, whatever the context."""
    repository: str | None = None
    """Where the weights are published; None for the model that ships inside Verger."""
    revision: str = "main"
    sampling: SamplingDefaults = SamplingDefaults()

    def fits(self, memory_bytes: int) -> bool:
        """Whether a machine with that much memory can serve the model."""
        return self.min_memory_bytes <= memory_bytes


Catalogue = Mapping[str, Model]


@dataclass(frozen=True, slots=True)
class ModelPlaces:
    """Where models lie: downloads, one folder per id, and the embedded one."""

    models_dir: Path
    nano_dir: Path

    def folder(self, model: Model) -> Path:
        """The folder that holds, or would hold, the model."""
        return self.nano_dir if model.id == EMBEDDED_ID else self.models_dir / model.id

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
    def context_tokens(self) -> int:
        """What the folder's own config allows, or less where the catalogue says so."""
        known = self.model.context_tokens if self.model else self.folder.context_tokens
        return min(known, self.folder.context_tokens)


def load_catalogue(folder: Path) -> Catalogue:
    """Read models/*.toml, smallest model first. Raises ConfigError for a damaged file."""
    models = [_load(path) for path in folder.glob("*.toml")]
    return {model.id: model for model in sorted(models, key=lambda model: model.weight_bytes)}


def resolve_model(
    requested: str,
    catalogue: Catalogue,
    places: ModelPlaces,
    *,
    memory_bytes: int,
    is_loopback: bool,
) -> ModelChoice:
    """Turn what --model says, a catalogue id, a folder or `auto`, into one checked folder.

    Raises ModelFolderError, whose text says how to get a model, when there is none to serve.
    """
    if requested == AUTO:
        return _largest_present(catalogue, places, memory_bytes, is_loopback)
    if requested in catalogue:
        return _catalogued(catalogue[requested], places, memory_bytes)
    folder = Path(requested).expanduser()
    if os.sep in requested or folder.is_dir():
        folder = folder.resolve()
        return ModelChoice(id=folder.name, folder=check_model_folder(folder), model=None)
    raise ModelFolderError(
        f"there is no model {requested!r}: --model takes one of {', '.join(catalogue)}, "
        f"{AUTO}, or the path of a model's folder"
    )


def download_command(model: Model, places: ModelPlaces) -> str:
    """The shell command that fetches the weights to where they are looked for.

    `hf` comes with the engine extra, beside the running interpreter.
    """
    beside = Path(sys.executable).with_name("hf")
    hf = str(beside) if beside.exists() else "hf"
    source = [str(model.repository), "--revision", model.revision]
    return shlex.join([hf, "download", *source, "--local-dir", str(places.folder(model))])


def _load(path: Path) -> Model:
    try:
        model = msgspec.toml.decode(path.read_bytes(), type=Model)
    except (OSError, msgspec.DecodeError) as error:
        raise ConfigError(f"{path}: {error}") from error
    if model.id != path.stem:
        raise ConfigError(f"{path}: id {model.id!r} differs from the file's name")
    return model


def _catalogued(model: Model, places: ModelPlaces, memory_bytes: int) -> ModelChoice:
    if not model.fits(memory_bytes):
        raise ModelFolderError(
            f"{model.id} needs a machine with {model.min_memory_bytes / GB:.0f} GB of memory, "
            f"this one has {memory_bytes / GB:.1f} GB"
        )
    folder = places.folder(model)
    if model.repository and not folder.exists():
        raise ModelFolderError(
            f"{model.id} is not in {folder}; to get it ({model.weight_bytes / GB:.1f} GB): "
            f"{download_command(model, places)}"
        )
    return ModelChoice(id=model.id, folder=check_model_folder(folder), model=model)


def _largest_present(
    catalogue: Catalogue, places: ModelPlaces, memory_bytes: int, is_loopback: bool
) -> ModelChoice:
    """The largest complete model that fits, else the embedded one with a notice saying so."""
    real = [model for model in catalogue.values() if model.repository]
    fitting = [model for model in real if model.fits(memory_bytes)]
    for model in sorted(fitting, key=lambda model: model.weight_bytes, reverse=True):
        if places.is_complete(model):
            return _catalogued(model, places, memory_bytes)
    advice = _advice(fitting, places)
    if not is_loopback:
        raise ModelFolderError(
            f"no complete model is in {places.models_dir}, and the embedded test model is served "
            f"on loopback only. {advice}"
        )
    choice = _catalogued(catalogue[EMBEDDED_ID], places, memory_bytes)
    notice = f"no model is present: this is {EMBEDDED_ID}, the embedded test model. {advice}"
    return replace(choice, notice=notice)


def _advice(fitting: list[Model], places: ModelPlaces) -> str:
    if not fitting:
        return "This machine has too little memory for a real one."
    best = max(fitting, key=lambda model: model.weight_bytes)
    return f"To get a real one: {download_command(best, places)}"
