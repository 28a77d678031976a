"""`verger pull`: a model of the catalogue, fetched from its hub, checked, and loaded once.

Everything arrives in `models/ID.partial`; the folder gets its name when all of it is there, has the
right checksums and was loaded, so that no server ever sees half a model.
"""

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from time import sleep
from typing import TYPE_CHECKING, Annotated

import typer

from verger import paths
from verger.catalogue import (
    GB,
    Catalogue,
    Model,
    ModelPlaces,
    load_catalogue,
    require_fit,
)
from verger.cli.download import Advance, RemoteFile, fetch
from verger.cli.machine import has_engine, machine_memory, model_places
from verger.errors import DownloadError, ModelFolderError, StartupError
from verger.model_folder import check_model_folder

if TYPE_CHECKING:
    from verger.cli.hub import Hub

SPARE_BYTES = 2_000_000_000
"""Of the disk, for the state that a server writes."""


def pull(
    model: Annotated[str, typer.Argument(help="A model of `verger models`.")],
    no_load: Annotated[
        bool, typer.Option("--no-load", help="Do not load it once when it is there.")
    ] = False,
) -> None:
    """Fetch a model: resumed where it broke off, checked, then loaded once."""
    places = model_places()
    wanted = _wanted(model, load_catalogue(paths.catalogue_dir()))
    if places.is_complete(wanted):
        print(f"{wanted.id} is complete in {places.folder(wanted)}: nothing to do")
        return
    if not has_engine():
        raise StartupError(
            "what fetches models comes with the engine: pip install 'verger[engine]'"
        )
    try:
        with _alone(wanted, places):
            _pull(wanted, places, is_loaded=not no_load)
    except KeyboardInterrupt:
        raise DownloadError(
            f"stopped; what has come is kept, and `verger pull {wanted.id}` goes on from there"
        ) from None
    print(f"{wanted.id} is in {places.folder(wanted)}; serve it: verger serve --model {wanted.id}")


def free_bytes(folder: Path) -> int:
    """Of the disk that the folder is on."""
    return shutil.disk_usage(folder).free


def _wanted(name: str, catalogue: Catalogue) -> Model:
    """Refused, before anything is fetched, is also what the machine could not serve."""
    known = [model.id for model in catalogue.values() if model.repository]
    if name not in known:
        raise ModelFolderError(f"there is no model {name!r} to fetch: take {' or '.join(known)}")
    require_fit(catalogue[name], catalogue, machine_memory())
    return catalogue[name]


@contextmanager
def _alone(model: Model, places: ModelPlaces) -> Iterator[None]:
    """Two at once would write the same files. The lock ends with the process, however it ends."""
    from filelock import FileLock, Timeout

    lock = FileLock(places.models_dir / f".{model.id}.lock", timeout=0)
    try:
        places.models_dir.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        raise DownloadError(f"another `verger pull {model.id}` is running: let it finish") from None
    except OSError as error:
        raise DownloadError(f"cannot write {places.models_dir}: {error.strerror}") from error
    try:
        yield
    finally:
        lock.release()


def _pull(model: Model, places: ModelPlaces, *, is_loaded: bool) -> None:
    from verger.cli.hub import Hub

    hub = Hub(str(model.repository))
    snapshot = hub.snapshot(model.revision)
    folder = _partial_folder(model, places)
    _require_space(folder, snapshot.files)
    print(f"{model.id}: {hub.repository} at {snapshot.commit[:12]}, from {hub.endpoint}")
    _fetch_all(hub, snapshot.commit, snapshot.files, folder)
    _remove_others(folder, snapshot.files)
    try:
        check_model_folder(folder)
    except ModelFolderError as error:
        raise DownloadError(f"what {hub.repository} holds cannot be served: {error}") from None
    if is_loaded:
        from verger.cli.load_test import load_once

        print(f"loading {model.id} once ...")
        print(load_once(model.id, folder))
    folder.rename(places.folder(model))


def _partial_folder(model: Model, places: ModelPlaces) -> Path:
    """A model's folder that lacks something becomes it: what is right need not come again."""
    partial, folder = places.partial_folder(model), places.folder(model)
    try:
        if folder.exists() and partial.exists():
            raise DownloadError(
                f"{folder} is damaged and {partial} is not finished: remove the former, then run "
                "the same command again"
            )
        if folder.exists():
            folder.rename(partial)
        partial.mkdir(exist_ok=True)
    except OSError as error:
        raise DownloadError(f"cannot write {partial}: {error.strerror}") from error
    return partial


def _require_space(folder: Path, files: Sequence[RemoteFile]) -> None:
    missing = sum(file.size_bytes - file.held_bytes(folder) for file in files)
    free = free_bytes(folder)
    if missing and missing + SPARE_BYTES > free:
        raise DownloadError(
            f"{missing / GB:.1f} GB are still to come and {SPARE_BYTES / GB:.0f} GB must stay "
            f"free, but {free / GB:.1f} GB are left on the disk of {folder}: make room, or set "
            "VERGER_HOME to a folder on another disk"
        )


def _fetch_all(hub: "Hub", commit: str, files: Sequence[RemoteFile], folder: Path) -> None:
    """The small ones first, so that what is wrong with them shows early."""
    with _progress(sum(file.size_bytes for file in files)) as advance:
        for file in sorted(files, key=lambda file: (file.size_bytes, file.name)):
            fetch(
                file,
                folder,
                lambda file, start: hub.body(commit, file, start),
                advance,
                sleep,
            )


@contextmanager
def _progress(total_bytes: int) -> Iterator[Advance]:
    """On a terminal a bar with speed and remaining time; elsewhere nothing."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    console = Console(stderr=True)
    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=total_bytes)
        yield lambda nbytes: progress.update(task, advance=nbytes)


def _remove_others(folder: Path, files: Sequence[RemoteFile]) -> None:
    """Parts of another revision, and what a revision no longer has."""
    known = {folder / file.name for file in files}
    for root, _, names in os.walk(folder):
        for path in (Path(root) / name for name in names):
            if path not in known:
                path.unlink()
