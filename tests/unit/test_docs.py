"""The README names what can be set, and nothing else."""

import re
from pathlib import Path

import msgspec

from verger.config import EngineConfig, ServerConfig
from verger.errors import EXIT_CANNOT_START, EXIT_USAGE

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
STRUCTS: dict[str, type[msgspec.Struct]] = {"server": ServerConfig, "engine": EngineConfig}


def test_every_setting_stands_in_the_readme_with_its_default() -> None:
    rows = set(re.findall(r"^\| `\[(\w+)\] (\w+)` \| `(\w+)` \|.*?\| `([^`]+)` \|", README, re.M))
    expected = {
        (section, field.name, f"VERGER_{section}_{field.name}".upper(), _toml(field.default))
        for section, struct in STRUCTS.items()
        for field in msgspec.structs.fields(struct)
    }
    assert rows == expected


def test_the_exit_codes_stand_in_the_readme() -> None:
    assert f"| {EXIT_USAGE} | wrong usage" in README
    assert f"| {EXIT_CANNOT_START} | cannot start" in README


def test_the_paths_of_the_readme_exist() -> None:
    """Those of a request's life, written as `folder/file.py`."""
    root = Path(__file__).parents[2]
    places = {name for name in re.findall(r"`([a-z_/]+\.py)`", README) if "/" in name}
    missing = {
        name
        for name in places
        if not (root / name).is_file() and not (root / "server/verger" / name).is_file()
    }
    assert not missing


def _toml(value: object) -> str:
    return f'"{value}"' if isinstance(value, str) else str(value)
