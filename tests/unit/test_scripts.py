"""The shell scripts, from a path with a space and from another folder; nothing is installed."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPTS = [*("scripts/" + name for name in "setup serve check test lock".split()), ".ci/run"]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of the scripts and lock files, with a stand-in for each installed command."""
    root = tmp_path / "a checkout"
    for name in ("pyproject.toml", "requirements.lock", "tests/requirements.lock", *SCRIPTS):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, root / name)
    for command in ("python", "verger"):
        write_command(root / ".venv" / "bin" / command, f'echo "{command} $* in $PWD"')
    return root


def write_command(path: Path, body: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/bash\n{body}\n")
    path.chmod(0o755)


def run(command: Path, *arguments: str, cwd: Path, path: str | None = None) -> tuple[int, str]:
    """Exit status and everything printed."""
    environ = {**os.environ, "PATH": path or "/usr/bin:/bin"}
    done = subprocess.run(
        [command, *arguments], cwd=cwd, env=environ, capture_output=True, text=True
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_are_executable_and_parse(name: str) -> None:
    assert os.access(ROOT / name, os.X_OK)
    subprocess.run(["bash", "-n", ROOT / name], check=True)


def test_the_first_start_installs_and_the_second_does_not(checkout: Path, tmp_path: Path) -> None:
    status, printed = run(checkout / "scripts/serve", "--port", "0", cwd=tmp_path)
    assert status == 0
    assert "--require-hashes -r requirements.lock" in printed
    assert f"verger serve --port 0 in {tmp_path}" in printed

    status, printed = run(checkout / "scripts/serve", "--model", "a b", cwd=tmp_path)
    assert (status, printed) == (0, f"verger serve --model a b in {tmp_path}\n")


def test_a_changed_lock_file_installs_again(checkout: Path, tmp_path: Path) -> None:
    run(checkout / "scripts/setup", cwd=tmp_path)
    with (checkout / "requirements.lock").open("a") as lock:
        lock.write("new==1.0\n")
    assert "--require-hashes" in run(checkout / "scripts/setup", cwd=tmp_path)[1]


def test_a_moved_checkout_installs_again(checkout: Path, tmp_path: Path) -> None:
    """The editable install and the commands hold the old path."""
    run(checkout / "scripts/setup", cwd=tmp_path)
    moved = checkout.rename(tmp_path / "elsewhere")
    assert "--require-hashes" in run(moved / "scripts/setup", cwd=tmp_path)[1]


def test_the_test_environment_is_good_for_serving_not_the_reverse(
    checkout: Path, tmp_path: Path
) -> None:
    run(checkout / "scripts/setup", "serve", cwd=tmp_path)
    printed = run(checkout / "scripts/setup", "test", cwd=tmp_path)[1]
    assert "-r tests/requirements.lock" in printed
    assert run(checkout / "scripts/setup", "serve", cwd=tmp_path) == (0, "")


def test_without_a_new_enough_python_one_line_says_how_to_get_one(
    checkout: Path, tmp_path: Path
) -> None:
    shutil.rmtree(checkout / ".venv")
    tools = tmp_path / "tools"
    for tool in ("bash", "dirname", "cat", "cmp", "rm"):
        (tools / tool).parent.mkdir(exist_ok=True)
        (tools / tool).symlink_to(str(shutil.which(tool)))
    write_command(tools / "python3", "exit 1  # as 3.9 answers the question for its version")
    status, printed = run(checkout / "scripts/serve", cwd=tmp_path, path=str(tools))
    assert status == 3
    assert printed.count("\n") == 1
    assert "needs Python 3.11 or newer" in printed
    assert "brew install" in printed


def test_the_locks_hold_names_versions_and_hashes_and_no_address() -> None:
    serve = (ROOT / "requirements.lock").read_text()
    test = (ROOT / "tests/requirements.lock").read_text()
    for text in (serve, test):
        assert "://" not in text
        assert "--hash=sha256:" in text
    pins = {line for line in serve.splitlines() if "==" in line}
    assert pins <= set(test.splitlines()), "scripts/lock writes both files together"
    assert not any(line.startswith("pytest==") for line in serve.splitlines())
