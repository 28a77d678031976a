import sys
from pathlib import Path

import pytest

from verger import paths


def test_home_is_verger_home(verger_home: Path) -> None:
    assert paths.home() == verger_home
    assert paths.config_file() == verger_home / "config.toml"
    assert paths.models_dir() == verger_home / "models"
    assert paths.cache_dir() == verger_home / "cache"
    assert paths.pins_file() == verger_home / "pins.json"


def test_home_expands_a_tilde(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VERGER_HOME", "~/elsewhere")
    assert paths.home() == Path.home() / "elsewhere"


@pytest.mark.parametrize(
    ("platform", "expected"),
    [
        ("darwin", "Library/Application Support/Verger"),
        ("linux", ".local/share/verger"),
        ("win32", "AppData/Local/Verger"),
    ],
)
def test_default_home_is_the_platforms_data_folder(
    platform: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("VERGER_HOME")
    for name in ("XDG_DATA_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sys, "platform", platform)
    assert paths.home() == Path.home() / expected


def test_default_home_honours_xdg_on_linux(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VERGER_HOME")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    monkeypatch.setattr(sys, "platform", "linux")
    assert paths.home() == tmp_path / "verger"


def test_default_home_honours_the_profile_on_windows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("VERGER_HOME")
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path))
    monkeypatch.setattr(sys, "platform", "win32")
    assert paths.home() == tmp_path / "Verger"


def test_other_programs_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    assert paths.user_config_dir() == Path.home() / ".config"
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert paths.user_config_dir() == tmp_path


def test_data_dir_of_a_checkout_is_its_root() -> None:
    """The other half, an installed wheel, is in tests/process/test_wheel.py."""
    root = Path(__file__).parents[2]
    assert paths.data_dir() == root
    assert (paths.catalogue_dir() / "nano.toml").is_file()
    assert (paths.data_dir() / "launchd").is_dir()
