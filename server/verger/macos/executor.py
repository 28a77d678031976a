"""Carries out steps: each is verified before the next, and a failure undoes what came before it.

    undo noted → step → check ──ok──► the next step
                          └─failed──► its own undo, then those of all before it, the last one first

Called by the CLI. Commands go through an injected runner, and owners are given by an injected
function; folders, files and links are made here. Blocks; one thread.

Root works here in folders that the service's account can write in, where a name may stand for
another file a moment later: so what is made gets its owner by its descriptor, and no link is read.
"""

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from verger.errors import StepFailed
from verger.macos.programs import MAX_REASON_CHARACTERS, Done, Runner, run_command, run_live
from verger.macos.steps import Await, MakeFolder, MoveLink, Remove, Run, Step, WriteFile

CHOWN, STAT = "/usr/sbin/chown", "/usr/bin/stat"
LOG_TAIL_BYTES = 64 * 1024
"""The questions that were asked meanwhile are in it too."""
CURL_HTTP_ERROR, ERROR_MARK = 22, " ERROR "


def owner_of(run: Runner, path: Path) -> str:
    """`user:group`, or an empty text where nobody can tell."""
    done = run((STAT, "-f", "%Su:%Sg", str(path)))
    return done.out.strip() if done.status == 0 else ""


class Owning(Protocol):
    """Gives an open file or folder to `user:group`; raises StepFailed or OSError."""

    def __call__(self, descriptor: int, path: Path, owner: str) -> None:
        """`path` is what it is called, as far as that can be trusted."""


def own(descriptor: int, path: Path, owner: str) -> None:
    """The real one."""
    user, _, group = owner.partition(":")
    try:
        shutil.chown(descriptor, user, group)
    except LookupError as error:
        raise StepFailed(f"it cannot belong to {owner}: {error}") from None


class Executor:
    """Carries out plans on this machine."""

    def __init__(
        self,
        run: Runner = run_command,
        pause: Callable[[float], None] = time.sleep,
        say: Callable[[str], None] = print,
        live: Runner = run_live,
        own: Owning = own,
    ) -> None:
        self._run = run
        self._live = live
        self._own = own
        self._shown: list[str] = []
        self._pause = pause
        self._say = say

    def carry_out(self, steps: Sequence[Step], *, is_undone: bool = True) -> list[str]:
        """All of them, or, if `is_undone`, none; raises StepFailed. Returns what was shown."""
        undos: list[Callable[[], None]] = []
        self._shown.clear()
        for step in steps:
            self._say(step.what)
            try:
                undos.append(self._undo_of(step))
                self._apply(step)
            except StepFailed as error:
                raise self._given_up(
                    f"{step.what}: {error}", undos if is_undone else None
                ) from None
            except OSError as error:
                reason = f"{step.what}: {error.strerror or error}"
                raise self._given_up(reason, undos if is_undone else None) from None
            except KeyboardInterrupt:
                reason = f"{step.what}: interrupted"
                raise self._given_up(reason, undos if is_undone else None) from None
        return list(self._shown)

    def _given_up(self, reason: str, undos: list[Callable[[], None]] | None) -> StepFailed:
        if undos is None:
            return StepFailed(f"{reason}; what came before it is done: run the command again")
        self._say("undoing what was done")
        failures = []
        for position, undo in enumerate(reversed(undos)):
            try:
                undo()
            except (StepFailed, OSError) as error:
                # The step that failed has perhaps nothing to undo.
                if position > 0:
                    failures.append(str(error))
        if failures:
            return StepFailed(f"{reason}; and this could not be undone: {'; '.join(failures)}")
        return StepFailed(f"{reason}; everything is as it was before")

    def _apply(self, step: Step) -> None:
        match step:
            case MakeFolder():
                self._make_folder(step)
            case WriteFile():
                self._write_file(step)
            case MoveLink():
                _move_link(step.path, step.target)
            case Remove():
                _remove(step.path)
            case Run():
                self._run_checked(step)
            case Await():
                self._await(step)

    def _make_folder(self, step: MakeFolder) -> None:
        if step.path.is_symlink():
            raise StepFailed("a symbolic link stands there; remove it")
        step.path.mkdir(exist_ok=True)
        descriptor = os.open(step.path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            os.fchmod(descriptor, step.mode)
            self._own(descriptor, step.path, step.owner)
        finally:
            os.close(descriptor)

    def _write_file(self, step: WriteFile) -> None:
        handle, temporary = tempfile.mkstemp(dir=step.path.parent, prefix=f".{step.path.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                os.fchmod(file.fileno(), step.mode)
                self._own(file.fileno(), step.path, step.owner)
                file.write(step.content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, step.path)
        finally:
            Path(temporary).unlink(missing_ok=True)
        if step.path.read_bytes() != step.content:
            raise StepFailed("it does not hold what was written")

    def _run_checked(self, step: Run) -> None:
        done = (self._live if step.is_live else self._run)(step.argv, step.timeout_s)
        if done.status not in step.statuses or (step.is_silent and done.out.strip()):
            said = done.reason if done.output.strip() or not step.advice else ""
            raise StepFailed("; ".join(filter(None, (said, step.advice))))
        asked = self._run(step.check) if step.check else done
        if step.check and asked.status != 0:
            raise StepFailed(f"the check failed: {asked.reason}")
        if step.expect not in asked.out:
            raise StepFailed(f"expected {step.expect!r}, found {asked.out.strip()[:100]!r}")
        if step.is_shown:
            self._shown.append(done.out.strip())
            self._say(self._shown[-1])

    def _await(self, step: Await) -> None:
        done = Done(0)
        for attempt in range(step.attempts):
            if attempt:
                self._pause(step.pause_s)
            done = self._run(step.argv)
            if (done.status == 0) is step.wants_success:
                return
        is_answered = step.error_log is not None and done.status == CURL_HTTP_ERROR
        log, mark = (step.error_log, ERROR_MARK) if is_answered else (step.log, "")
        last = "" if log is None else _last_line(log, mark)
        waited_s = step.attempts * step.pause_s
        raise StepFailed(f"not within {waited_s:g} s ({last or done.reason})")

    def _undo_of(self, step: Step) -> Callable[[], None]:
        """How to come back to what is there now."""
        match step:
            case MakeFolder() if step.path.is_dir():
                mode, owner = step.path.stat().st_mode & 0o7777, self._owner(step.path)
                old = MakeFolder(path=step.path, mode=mode, owner=owner)
                return lambda: self._make_folder(old)
            case MakeFolder() if not _stands(step.path):
                return lambda: _remove(step.path)
            case WriteFile() if step.path.is_symlink():
                # What it names could be put back as a file that the service's account may read.
                raise StepFailed("a symbolic link stands there; remove it")
            case WriteFile() if step.path.exists():
                before = WriteFile(
                    path=step.path,
                    content=step.path.read_bytes(),
                    mode=step.path.stat().st_mode & 0o777,
                    owner=self._owner(step.path),
                )
                return lambda: self._write_file(before)
            case WriteFile():
                return lambda: _remove(step.path)
            case MoveLink() if step.path.is_symlink():
                target = os.readlink(step.path)
                return lambda: _move_link(step.path, target)
            case MoveLink() if not _stands(step.path):
                return lambda: _remove(step.path)
            case Run():
                return lambda: self._apply_all(step.undo)
            case _:
                return lambda: None

    def _owner(self, path: Path) -> str:
        owner = owner_of(self._run, path)
        if not owner:
            raise StepFailed(f"whose {path} is cannot be found out")
        return owner

    def _apply_all(self, steps: Sequence[Step]) -> None:
        for step in steps:
            self._apply(step)


def _move_link(path: Path, target: str) -> None:
    """By a rename, so that there is never no link."""
    if _stands(path) and not path.is_symlink():
        raise StepFailed("something that is not a link stands there; move it away")
    beside = path.with_name(f".{path.name}.new")
    beside.unlink(missing_ok=True)
    beside.symlink_to(target)
    os.replace(beside, path)


def _stands(path: Path) -> bool:
    return path.exists() or path.is_symlink()


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _last_line(log: Path, mark: str) -> str:
    """Of those that have the mark in them."""
    try:
        text = log.read_bytes()[-LOG_TAIL_BYTES:].decode(errors="replace")
    except OSError:
        return ""
    lines = [line for line in text.splitlines() if line.strip() and mark in line]
    return lines[-1][:MAX_REASON_CHARACTERS] if lines else ""
