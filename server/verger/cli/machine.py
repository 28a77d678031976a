"""What the commands ask about the machine they run on. Must not know MLX."""

import os
from importlib.util import find_spec
from pathlib import Path

from verger import paths
from verger.catalogue import ModelPlaces
from verger.config import Config, is_loopback
from verger.macos.machine import Machine, ThisMachine
from verger.memory_fit import MachineMemory

MIB = 1 << 20


def memory_bytes() -> int:
    """Physical memory; on a Mac that is the unified memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def machine_memory() -> MachineMemory:
    """What there is, and what of it a model may take."""
    return MachineMemory.of(memory_bytes(), wired_limit_bytes(ThisMachine()))


def wired_limit_bytes(machine: Machine) -> int:
    """What somebody lets a Mac's GPU hold; 0: nobody said, macOS has its rule."""
    if not machine.is_mac:
        return 0
    ran = machine.run(["sysctl", "-n", "iogpu.wired_limit_mb"])
    is_number = ran is not None and ran.status == 0 and ran.output.strip().isdigit()
    return int(ran.output) * MIB if ran is not None and is_number else 0


def is_trial(config: Config, home: Path) -> bool:
    """Whether the embedded model may stand in for a real one: nobody but this user is served, which
    cannot be said of a service, whose loopback address may be behind a proxy."""
    return is_loopback(config.server.host) and home != paths.SERVICE_HOME


def has_engine() -> bool:
    """Whether the extra `engine` is installed, without importing any of it."""
    return find_spec("mlx_lm") is not None


def model_places() -> ModelPlaces:
    """Where this user's models and the embedded one lie."""
    return ModelPlaces(models_dir=paths.models_dir(), nano_dir=paths.nano_dir())
