"""Commands of the first hour end with all that they have started."""

import subprocess
import sys
from pathlib import Path

import pytest

from scripts.hour.run import (
    NOT_FOUND,
    POLL_S,
    TIMED_OUT,
    Done,
    beside,
    end_group,
    run_command,
)

pytestmark = pytest.mark.process

STARTS_A_CHILD = "sleep 300 & echo $! >{file}; {then}"
"""A shell whose child would outlive it."""
STUBBORN = "trap '' TERM; " + STARTS_A_CHILD


def is_running(pid: int) -> bool:
    """A zombie that nobody has waited for does not run."""
    command = ["/bin/ps", "-o", "stat=", "-p", str(pid)]
    state = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    return bool(state) and not state.startswith("Z")


def child_of(file: Path) -> int:
    return int(file.read_text())


@pytest.mark.parametrize(("script", "end_s"), [(STARTS_A_CHILD, 10.0), (STUBBORN, 0.2)])
def test_a_command_that_takes_too_long_ends_with_its_children(
    tmp_path: Path, script: str, end_s: float
) -> None:
    """The second one and its child ignore SIGTERM."""
    file = tmp_path / "pid"
    command = ["/bin/sh", "-c", "echo begun; " + script.format(file=file, then="wait; sleep 300")]
    done = run_command(command, 0.5, end_s)
    assert done == Done(TIMED_OUT, "begun\n", "it took longer than 0.5 s")
    assert not is_running(child_of(file))


def test_a_child_whose_parent_ends_at_once_is_ended_as_well(tmp_path: Path) -> None:
    file = tmp_path / "pid"
    command = ["/bin/sh", "-c", STARTS_A_CHILD.format(file=file, then="exit 0")]
    assert run_command(command, 0.5).status == TIMED_OUT
    assert not is_running(child_of(file))


def test_whoever_is_interrupted_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "pid"
    command = ["/bin/sh", "-c", STARTS_A_CHILD.format(file=file, then="wait")]

    def interrupted(process: "subprocess.Popen[bytes]", timeout: float) -> tuple[bytes, bytes]:
        while not (file.exists() and file.read_text().strip()):
            pass
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(subprocess.Popen, "communicate", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run_command(command, 5.0)
    assert not is_running(child_of(file))


def test_a_command_that_ends_says_how() -> None:
    program = "import sys; print('out'); sys.exit('why\\n')"
    done = run_command([sys.executable, "-c", program], 30.0)
    assert (done.status, done.out, done.reason) == (1, "out\n", "why")
    assert run_command(["/nowhere/program"], 1.0).status == NOT_FOUND


def test_what_runs_beside_ends_with_its_context(tmp_path: Path) -> None:
    file, out = tmp_path / "pid", tmp_path / "out"
    script = "echo first; " + STARTS_A_CHILD.format(file=file, then="wait")
    with beside(["/bin/sh", "-c", script], out):
        while not (file.exists() and file.read_text().strip()):
            pass
        assert is_running(child_of(file))
    assert not is_running(child_of(file))
    assert out.read_text() == "first\n"


def test_the_wait_for_who_does_not_end_is_bounded() -> None:
    pauses: list[float] = []
    command = ["/bin/sh", "-c", "trap '' TERM; echo deaf; while :; do :; done"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        end_group(process, 1.0, pauses.append)
    assert pauses == [POLL_S] * 20
    assert process.returncode == -9
