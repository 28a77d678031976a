"""What the commands ask about the machine they run on. Must not know MLX."""

import os
from importlib.util import find_spec

from verger import paths
from verger.catalogue import ModelPlaces


def memory_bytes() -> int:
    """Physical memory; on a Mac that is the unified memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def has_engine() -> bool:
    """Whether the extra `engine` is installed, without importing any of it."""
    return find_spec("mlx_lm") is not None


def model_places() -> ModelPlaces:
    """Where this user's models and the embedded one lie."""
    return ModelPlaces(models_dir=paths.models_dir(), nano_dir=paths.nano_dir())
