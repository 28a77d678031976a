"""The servers that this machine has used: who they were, where, and the keys for them.

A pin is made at the first use of a name and compared at every later one; a key belongs to one pin.
Read and written by `instances` and `env`; kept in one private file. Two commands that add a pin in
the same instant may lose one of the two, which the next use adds again.
"""

import os
import re
from pathlib import Path

import msgspec
from msgspec import Struct

from verger.cli.private_file import write_private
from verger.connect.address import Address, is_name, make_address
from verger.errors import InstanceError

FILE_VERSION = 1
MAX_PINS = 256
MAX_FILE_BYTES = 1024 * 1024
MAX_KEY_CHARACTERS = 512
TRUSTED = "trusted"
"""In place of a fingerprint: the system vouches for the certificate, also when it is renewed."""

_KEY = re.compile(rf"[!-~]{{1,{MAX_KEY_CHARACTERS}}}")


class Pin(Struct, frozen=True, forbid_unknown_fields=True):
    """One server. `certificate` is TRUSTED, a certificate's SHA-256, or null without TLS."""

    name: str
    id: str
    host: str
    port: int
    certificate: str | None
    key: str | None = None

    @property
    def address(self) -> Address:
        """Where it was; raises ValueError if somebody wrote nonsense into the file."""
        return make_address(self.host, self.port, is_tls=self.certificate is not None)


class _File(Struct, frozen=True, forbid_unknown_fields=True):
    version: int
    pins: list[Pin]


class Pins:
    """All pins, in the order in which they were made."""

    def __init__(self, path: Path, pins: dict[str, Pin]) -> None:
        self._path = path
        self._pins = pins

    @property
    def names(self) -> list[str]:
        """Of all servers that were used."""
        return list(self._pins)

    def find(self, name: str) -> Pin | None:
        """The server that was used under this name."""
        return self._pins.get(name)

    def put(self, pin: Pin) -> None:
        """Remember it, in place of the one of the same name. Raises InstanceError."""
        pins = {**self._pins, pin.name: pin}
        if len(pins) > MAX_PINS:
            raise InstanceError(f"{self._path} holds {MAX_PINS} servers; remove some from it")
        content = msgspec.json.encode(_File(FILE_VERSION, list(pins.values())))
        try:
            write_private(self._path, msgspec.json.format(content))
        except OSError as error:
            raise InstanceError(f"cannot write {self._path}: {error.strerror}") from None
        self._pins = pins


def load_pins(path: Path) -> Pins:
    """Raises InstanceError if the file is damaged, of a later version, or readable by others."""
    try:
        content = path.read_bytes()
        is_open = os.name == "posix" and path.stat().st_mode & 0o077 != 0
    except FileNotFoundError:
        return Pins(path, {})
    except OSError as error:
        raise InstanceError(f"cannot read {path}: {error.strerror}") from None
    if is_open:
        raise InstanceError(f"{path} holds keys and others may read it: chmod 600 it")
    try:
        file = msgspec.json.decode(content[:MAX_FILE_BYTES], type=_File)
        if file.version != FILE_VERSION:
            raise ValueError(f"version {file.version}, but this Verger knows {FILE_VERSION}")
        return Pins(path, {pin.name: _checked(pin) for pin in file.pins})
    except ValueError as error:
        raise InstanceError(
            f"{path} is damaged or from a later version ({error}); move it away to begin anew"
        ) from None


def is_key(text: str) -> bool:
    """Visible ASCII, so that it fits into a header and into a shell."""
    return _KEY.fullmatch(text) is not None


def _checked(pin: Pin) -> Pin:
    if not is_name(pin.name) or not (pin.key is None or is_key(pin.key)):
        raise ValueError("a name or a key is not one")
    _ = pin.address
    return pin
