"""What is assumed of a Mac and of a rented GPU, each value with where it comes from.

Files of models/machines/ and models/rented/; configuration and flags replace single values. Used by
the commands and by `verger serve`. Must not know how a value was configured.
"""

import datetime
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

import msgspec
from msgspec import Struct
from msgspec.structs import asdict, replace

from verger.costs.formulas import Machine, RentedGpu
from verger.errors import ConfigError, SnapshotError


class Assumption(Struct, frozen=True, forbid_unknown_fields=True):
    """A number, and why it is that."""

    value: float
    source: str


class MacAssumptions(Struct, frozen=True, forbid_unknown_fields=True):
    """Named as in [costs] of the configuration; money is in US dollars."""

    mac_price: Assumption
    resale: Assumption
    """The fraction of the price that is left at the end."""
    years: Assumption
    kwh: Assumption
    idle_w: Assumption
    active_w: Assumption
    decode_tok_s: Assumption
    prefill_tok_s: Assumption
    busy: Assumption
    """The fraction of the time, nights included, in which it computes."""

    def machine(self) -> Machine:
        """For the formulas. Raises ConfigError where values contradict each other."""
        if self.active_w.value < self.idle_w.value:
            raise ConfigError(
                f"active_w ({self.active_w.value:g}, {self.active_w.source}) is less than idle_w "
                f"({self.idle_w.value:g}, {self.idle_w.source}); give both"
            )
        return Machine(
            price_usd=self.mac_price.value,
            resale=self.resale.value,
            years=self.years.value,
            usd_per_kwh=self.kwh.value,
            idle_w=self.idle_w.value,
            active_w=self.active_w.value,
            decode_tok_s=self.decode_tok_s.value,
            prefill_tok_s=self.prefill_tok_s.value,
        )


class AssumedMac(Struct, frozen=True, forbid_unknown_fields=True):
    """machines/MODEL.toml: the Mac that somebody would buy for the model."""

    model: str
    machine: str
    date: datetime.date
    assumed: MacAssumptions

    def with_known(self, known: Mapping[str, Assumption]) -> "AssumedMac":
        """What is known takes the place of what is assumed."""
        return replace(self, assumed=replace(self.assumed, **known))


class RentedAssumptions(Struct, frozen=True, forbid_unknown_fields=True):
    """How a rented GPU is billed, and how often it is started."""

    usd_per_h: Assumption
    scaledown_s: Assumption
    cold_start_s: Assumption
    starts_per_day: Assumption

    def gpu(self) -> RentedGpu:
        """For the formulas."""
        return RentedGpu(self.usd_per_h.value, self.scaledown_s.value, self.cold_start_s.value)


class AssumedGpu(Struct, frozen=True, forbid_unknown_fields=True):
    """rented/NAME.toml."""

    name: str
    date: datetime.date
    assumed: RentedAssumptions


_File = TypeVar("_File", AssumedMac, AssumedGpu)


def load_macs(folder: Path) -> Mapping[str, AssumedMac]:
    """Model → the Mac assumed for it. Raises SnapshotError for a damaged file."""
    files = [_load(path, AssumedMac) for path in sorted((folder / "machines").glob("*.toml"))]
    return {file.model: file for file in files}


def load_gpus(folder: Path) -> list[AssumedGpu]:
    """The GPUs that can be rented. Raises SnapshotError for a damaged file."""
    return [_load(path, AssumedGpu) for path in sorted((folder / "rented").glob("*.toml"))]


def listed(assumptions: MacAssumptions | RentedAssumptions) -> Mapping[str, Assumption]:
    """Each by its name, in the order in which they are printed."""
    return asdict(assumptions)


def _load(path: Path, schema: type[_File]) -> _File:
    try:
        return msgspec.toml.decode(path.read_bytes(), type=schema)
    except (OSError, msgspec.DecodeError) as error:
        raise SnapshotError(f"{path}: {error}") from error
