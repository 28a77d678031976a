"""The file of pins: private, versioned, bounded, and never guessed about."""

import json
import os
from pathlib import Path

import pytest

from verger.cli.pins import MAX_PINS, Pin, Pins, load_pins
from verger.errors import InstanceError

PIN = Pin("office-mini", "6f1c1f6e-52a5-4d7a-9a56-0b8d2f6d3f10", "office-mini.local", 8374, None)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "state" / "pins.json"


def write(file: Path, text: str, mode: int = 0o600) -> None:
    file.parent.mkdir(exist_ok=True)
    file.write_text(text)
    file.chmod(mode)


def named(name: str) -> Pin:
    return Pin(name, PIN.id, PIN.host, PIN.port, PIN.certificate)


def test_what_is_put_is_found_again(file: Path) -> None:
    load_pins(file).put(PIN)
    pins = load_pins(file)
    assert pins.find("office-mini") == PIN
    assert pins.find("other") is None
    assert [path.name for path in file.parent.iterdir()] == ["pins.json"]


def test_a_file_that_others_may_read_is_refused(file: Path) -> None:
    if os.name != "posix":
        pytest.skip("modes are POSIX")
    load_pins(file).put(PIN)
    for mode in (0o640, 0o604):
        file.chmod(mode)
        with pytest.raises(InstanceError, match="chmod 600"):
            load_pins(file)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        '{"version": 1}',
        '{"version": 2, "pins": []}',
        '{"version": 1, "pins": [], "more": 1}',
        '{"version": 1, "pins": [{"name": "x"}]}',
    ],
)
def test_a_damaged_file_or_a_later_version_is_not_overwritten(file: Path, text: str) -> None:
    write(file, text)
    with pytest.raises(InstanceError, match="damaged or from a later version"):
        load_pins(file)
    assert file.read_text() == text


@pytest.mark.parametrize(
    "change", [{"host": "$(id)"}, {"port": 0}, {"name": "a'b"}, {"key": "two words"}]
)
def test_what_could_harm_a_shell_is_not_taken_from_the_file(
    file: Path, change: dict[str, object]
) -> None:
    fields = {"name": "a", "id": PIN.id, "host": "h", "port": 1, "certificate": None, "key": None}
    write(file, json.dumps({"version": 1, "pins": [{**fields, **change}]}))
    with pytest.raises(InstanceError, match="damaged"):
        load_pins(file)


def test_the_table_is_bounded(file: Path) -> None:
    pins = Pins(file, {f"n{number}": named(f"n{number}") for number in range(MAX_PINS - 1)})
    pins.put(named("last"))
    pins.put(named("last"))
    assert len(load_pins(file).names) == MAX_PINS
    with pytest.raises(InstanceError, match=f"{MAX_PINS} servers"):
        pins.put(named("one-too-many"))
    assert len(load_pins(file).names) == MAX_PINS
