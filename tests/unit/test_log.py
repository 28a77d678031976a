import logging
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from verger.errors import ConfigError
from verger.log import (
    KEPT_CRASH_BYTES,
    MAX_CRASH_BYTES,
    LogFile,
    configure,
    key_values,
    trim,
)

LINE = 100
"""Bytes of a line of these tests, with all that stands before the message."""


@pytest.fixture
def logging_restored() -> Iterator[None]:
    root, handlers = logging.getLogger(), logging.getLogger().handlers[:]
    yield
    for handler in root.handlers:
        if handler not in handlers:
            handler.close()
    root.handlers[:] = handlers


def write_line(number: int) -> None:
    logger = logging.getLogger("verger.test")
    before = len("2026-11-24 00:00:00,000 INFO verger.test ")
    logger.info(f"{number:0{LINE - before - 1}d}")


def numbers(file: Path) -> list[int]:
    return [int(line.split()[-1]) for line in file.read_text().splitlines()]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("plain", "field=plain"),
        (12, "field=12"),
        (0.12345, "field=0.123"),
        ("two words", 'field="two words"'),
        ('a"b', r'field="a\"b"'),
        ("line\nline", r'field="line\nline"'),
        ("a=b", 'field="a=b"'),
        ("", 'field=""'),
        ("/\x1b[2J\r\u2028é", r'field="/\x1b[2J\r\u2028é"'),
        ("a\\b", r"field=a\b"),
        ("a\\ b", r'field="a\\ b"'),
    ],
)
def test_values_are_quoted_when_they_must_be(value: object, expected: str) -> None:
    assert key_values(field=value) == expected


def test_what_is_none_is_left_out() -> None:
    assert key_values(event="start", port=None, host="::1") == "event=start host=::1"


@pytest.mark.usefixtures("logging_restored")
def test_a_full_file_is_kept_and_the_oldest_goes(tmp_path: Path) -> None:
    """Three lines fit; a fourth begins another file, and of those before it two are kept."""
    file = tmp_path / "log" / "verger.log"
    configure(LogFile(file, max_bytes=3 * LINE + 1, kept_files=2))
    for number in range(10):
        write_line(number)

    kept = {path.name: numbers(path) for path in file.parent.iterdir()}
    assert kept == {"verger.log": [9], "verger.log.1": [6, 7, 8], "verger.log.2": [3, 4, 5]}


@pytest.mark.usefixtures("logging_restored")
def test_others_on_the_machine_cannot_read_the_log(tmp_path: Path) -> None:
    file, before = tmp_path / "log" / "verger.log", os.umask(0)
    try:
        configure(LogFile(file, max_bytes=LINE, kept_files=1))
        write_line(1)
        write_line(2)
    finally:
        os.umask(before)

    paths = [file, file.with_name("verger.log.1"), file.parent]
    assert [stat.S_IMODE(path.stat().st_mode) for path in paths] == [0o640, 0o640, 0o750]


@pytest.mark.usefixtures("logging_restored")
def test_a_log_that_exists_is_continued(tmp_path: Path) -> None:
    file = tmp_path / "verger.log"
    for number in range(2):
        configure(LogFile(file, max_bytes=1000, kept_files=1))
        write_line(number)

    assert numbers(file) == [0, 1]


def test_a_log_that_cannot_be_written_is_a_configuration_error(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("no folder")
    with pytest.raises(ConfigError, match=r"cannot write the log .*log/verger.log"):
        configure(LogFile(tmp_path / "log" / "verger.log", 1000, 1))


def test_the_engines_file_stands_beside_the_gateways() -> None:
    file = LogFile(Path("/x/verger.log"), 7, 3)
    assert file.beside("engine") == LogFile(Path("/x/verger-engine.log"), 7, 3)


def test_a_crash_file_at_the_limit_is_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "stderr.log"
    file.write_bytes(b"x" * MAX_CRASH_BYTES)
    trim(file)
    assert file.stat().st_size == MAX_CRASH_BYTES


def test_of_a_larger_crash_file_the_last_lines_stay(tmp_path: Path) -> None:
    """In place: who holds it open to append, as launchd does, still writes into this file."""
    file, line = tmp_path / "stderr.log", b"0123456789abcdef\n"
    with file.open("ab", buffering=0) as appending:
        appending.write(line * (MAX_CRASH_BYTES // len(line) + 1))
        trim(file)
        appending.write(b"the next crash\n")

    kept = file.read_bytes().splitlines(keepends=True)
    assert len(kept) == KEPT_CRASH_BYTES // len(line) + 1
    assert set(kept[:-1]) == {line}
    assert kept[-1] == b"the next crash\n"


def test_a_crash_file_that_is_not_there_needs_no_trimming(tmp_path: Path) -> None:
    trim(tmp_path / "stderr.log")
    assert not list(tmp_path.iterdir())
