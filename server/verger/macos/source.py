"""What is installed: this checkout, a wheel, or the released version; and with which interpreter.

Called by the CLI before it plans. Reads files and starts nothing. An environment is named after
the version and a digest of the source, so that two states of a checkout are two environments.
"""

import hashlib
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from verger import __version__, paths
from verger.errors import InstallError

DIGEST_CHARACTERS = 8
_CODE = ("server/verger", "models", "launchd")
_VERSION = re.compile(r'^__version__ = "([0-9A-Za-z.+-]+)"$', re.M)
_WHEEL = re.compile(r"verger-([0-9A-Za-z.+]+)-.*\.whl")
_HOMES = ("/Users", "/home", "/root", "/var/root", "/private/var/root")


@dataclass(frozen=True, slots=True)
class Source:
    """`pip` holds the arguments of each call of pip, in order."""

    version: str
    environment: str
    """The name of its environment."""
    pip: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, slots=True)
class Interpreter:
    """A Python, and the folder with all that belongs to it."""

    executable: Path
    prefix: Path

    @property
    def is_in_a_home(self) -> bool:
        """Where the service's account cannot read it."""
        homes = (*_HOMES, str(Path("~").expanduser()))
        return any(self.prefix.is_relative_to(home) for home in homes)

    def moved_to(self, prefix: Path) -> "Interpreter":
        """The same one, copied to another folder."""
        return Interpreter(prefix / self.executable.relative_to(self.prefix), prefix)


def this_interpreter() -> Interpreter:
    """What this process runs on, outside its virtual environment."""
    prefix = Path(sys.base_prefix).resolve()
    name = f"python{sys.version_info.major}.{sys.version_info.minor}"
    return Interpreter(prefix / "bin" / name, prefix)


def source_of(place: Path | None) -> Source:
    """Of a checkout or a wheel; without one, of whatever this process runs. Raises InstallError."""
    if place is None and not (paths.data_dir() / "pyproject.toml").exists():
        return Source(__version__, __version__, (("--", f"verger[engine]=={__version__}"),))
    place = (place or paths.data_dir()).expanduser().absolute()
    try:
        return _wheel(place) if place.suffix == ".whl" else _checkout(place)
    except OSError as error:
        raise InstallError(f"cannot read {error.filename}: {error.strerror}") from None


def _wheel(file: Path) -> Source:
    named = _WHEEL.fullmatch(file.name)
    if named is None:
        raise InstallError(f"{file} is not a wheel of Verger: verger-VERSION-py3-none-any.whl")
    digest = hashlib.sha256(file.read_bytes()).hexdigest()[:DIGEST_CHARACTERS]
    return Source(named[1], f"{named[1]}-{digest}", (("--", f"{file}[engine]"),))


def _checkout(folder: Path) -> Source:
    lock = folder / "requirements.lock"
    named = _VERSION.search((folder / "server/verger/__init__.py").read_text(encoding="utf-8"))
    if named is None:
        raise InstallError(f"{folder} is not a checkout of Verger")
    digest = hashlib.sha256()
    for file in (lock, folder / "pyproject.toml", *_code_of(folder)):
        content = file.read_bytes()
        digest.update(f"{file.relative_to(folder)}\0{len(content)}\0".encode())
        digest.update(content)
    return Source(
        named[1],
        f"{named[1]}-{digest.hexdigest()[:DIGEST_CHARACTERS]}",
        (
            ("--only-binary", ":all:", "--require-hashes", "-r", str(lock)),
            ("--no-deps", "--no-build-isolation", "--", str(folder)),
        ),
    )


def _code_of(folder: Path) -> Iterator[Path]:
    for part in _CODE:
        files = (path for path in (folder / part).rglob("*") if path.is_file())
        yield from sorted(file for file in files if "__pycache__" not in file.parts)
