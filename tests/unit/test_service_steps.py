"""The runner and the executor by themselves, and what dscl is taken to print."""

import grp
import os
import pwd
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from verger.errors import StepFailed
from verger.macos.account import parse_ids, parse_record
from verger.macos.executor import Executor, Owning, own
from verger.macos.programs import MAX_REASON_CHARACTERS, Done, run_command
from verger.macos.steps import Await, MakeFolder, MoveLink, Remove, Run, Step, WriteFile, transcript


def python(program: str) -> tuple[str, ...]:
    return (sys.executable, "-c", program)


@pytest.mark.slow
def test_a_command_ends_somehow_whatever_it_is() -> None:
    assert run_command(python("print(1)")) == Done(0, "1\n", "")
    assert run_command(python("exit('no')")).reason == "no"
    assert run_command(["/nowhere/launchctl"]).reason == "there is no /nowhere/launchctl"
    assert "cannot run" in run_command(["/"]).reason
    assert (
        "took longer than 0.2 s"
        in run_command(python("input = open('/dev/zero').read()"), 0.2).reason
    )


def test_what_a_command_makes_can_be_read_by_others(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        run_command(python(f"open({str(tmp_path / 'made')!r}, 'w')"))
    finally:
        os.umask(before)
    assert (tmp_path / "made").stat().st_mode & 0o777 == 0o644


def test_a_reason_is_one_line_of_bounded_length() -> None:
    assert Done(1, err="first\n" + "x" * 1000 + "\n").reason == "x" * MAX_REASON_CHARACTERS
    assert Done(7).reason == "status 7"


def test_ctrl_c_undoes_what_was_done(tmp_path: Path) -> None:
    def interrupted(argv: Sequence[str], timeout_s: float = 0) -> Done:
        raise KeyboardInterrupt

    file = tmp_path / "file"
    steps: list[Step] = [
        WriteFile(path=file, content=b"1", mode=0o600, owner="me:us"),
        Run(what="sleep", argv=("sleep",)),
    ]
    with pytest.raises(StepFailed, match="sleep: interrupted; everything is as it was before"):
        Executor(interrupted, say=lambda line: None, own=owned({})).carry_out(steps)
    assert not file.exists()


def owned(inodes: dict[int, str]) -> Owning:
    """Notes which file, whatever its name is by then, was given to whom."""

    def own(descriptor: int, path: Path, owner: str) -> None:
        inodes[os.fstat(descriptor).st_ino] = owner

    return own


def test_what_is_made_is_given_away_before_it_has_a_name_that_others_can_take(
    tmp_path: Path,
) -> None:
    inodes: dict[int, str] = {}
    steps: list[Step] = [
        MakeFolder(path=tmp_path / "log", mode=0o750, owner="me:us"),
        WriteFile(path=tmp_path / "log" / "file", content=b"1", mode=0o640, owner="me:them"),
    ]
    Executor(say=lambda line: None, own=owned(inodes)).carry_out(steps)
    made = {path.name: inodes[path.stat().st_ino] for path in tmp_path.rglob("*")}
    assert made == {"log": "me:us", "file": "me:them"}
    assert (tmp_path / "log" / "file").stat().st_mode & 0o777 == 0o640


def test_what_a_link_names_is_neither_read_nor_put_back(tmp_path: Path) -> None:
    (tmp_path / "shadow").write_text("root's")
    link = tmp_path / "copy"
    link.symlink_to(tmp_path / "shadow")
    step = WriteFile(path=link, content=b"", mode=0o644, owner="me:us")
    with pytest.raises(StepFailed, match="a symbolic link stands there; remove it"):
        Executor(say=lambda line: None, own=owned({})).carry_out([step])
    assert link.is_symlink()
    assert (tmp_path / "shadow").read_text() == "root's"


def test_an_owner_that_there_is_not_is_told(tmp_path: Path) -> None:
    with (tmp_path / "file").open("w") as file:
        with pytest.raises(StepFailed, match="cannot belong to no-such-user:wheel"):
            own(file.fileno(), tmp_path / "file", "no-such-user:wheel")
        status = os.fstat(file.fileno())
        me = f"{pwd.getpwuid(status.st_uid).pw_name}:{grp.getgrgid(status.st_gid).gr_name}"
        own(file.fileno(), tmp_path / "file", me)


def test_a_check_that_says_something_else_is_a_failure() -> None:
    run = Executor(run_command, say=lambda line: None)
    step = Run(what="ask", argv=python("pass"), check=python("print('two')"), expect="one")
    with pytest.raises(StepFailed, match="expected 'one', found 'two'"):
        run.carry_out([step])
    with pytest.raises(StepFailed, match="the check failed"):
        run.carry_out([Run(what="ask", argv=python("pass"), check=python("exit(1)"))])


@pytest.mark.parametrize(("succeeds_at", "is_enough"), [(3, True), (4, False)])
def test_waiting_has_a_bound(succeeds_at: int, is_enough: bool) -> None:
    asked: list[Sequence[str]] = []
    pauses: list[float] = []

    def answers(argv: Sequence[str], timeout_s: float = 0) -> Done:
        asked.append(argv)
        return Done(0 if len(asked) == succeeds_at else 7)

    run = Executor(answers, pauses.append, lambda line: None)
    step = Await(what="wait", argv=("curl",), attempts=3, pause_s=2.0)
    if is_enough:
        run.carry_out([step])
    else:
        with pytest.raises(StepFailed, match="not within 6 s"):
            run.carry_out([step])
    assert (len(asked), pauses) == (3, [2.0, 2.0])


@pytest.mark.parametrize(
    ("status", "told"),
    [(22, "11:00 ERROR event=safe_mode reason=memory"), (7, "verger: no such file")],
    ids=["it answers that it is not ready", "it does not answer"],
)
def test_a_server_that_is_waited_for_in_vain_is_quoted(
    tmp_path: Path, status: int, told: str
) -> None:
    died, log = tmp_path / "stderr.log", tmp_path / "verger.log"
    died.write_text("first\nverger: no such file\n")
    lines = ["INFO event=started", "ERROR event=safe_mode reason=memory", *["INFO ask"] * 500]
    log.write_text("".join(f"11:00 {line}\n" for line in lines))
    run = Executor(lambda argv, timeout_s=0.0: Done(status), say=lambda line: None)
    step = Await(what="wait", argv=("curl",), attempts=1, log=died, error_log=log)
    with pytest.raises(StepFailed, match=f"{told}\\)"):
        run.carry_out([step])


def test_a_link_is_not_put_in_the_place_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "current").mkdir()
    with pytest.raises(StepFailed, match="not a link stands there"):
        Executor(say=lambda line: None).carry_out([MoveLink(path=tmp_path / "current", target="x")])
    assert (tmp_path / "current").is_dir()


def test_removing_a_link_leaves_what_it_names(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "kept")
    Executor(say=lambda line: None).carry_out([Remove(path=tmp_path / "link")])
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


def test_a_transcript_can_be_read_and_pasted() -> None:
    wait = Await(what="wait", argv=("/bin/x",), attempts=3, wants_success=False)
    step = Run(what="do it", argv=("/bin/x", "two words"), check=("/bin/y",))
    assert transcript([step, wait]).splitlines() == [
        "# do it",
        "/bin/x 'two words'",
        "#   checked: /bin/y",
        "# wait: until this fails, at most 3 s",
        "/bin/x",
    ]
    refused = Run(what="look", argv=("/bin/x",), statuses=frozenset({1}))
    silent = Run(what="look", argv=("/bin/x",), is_silent=True)
    assert transcript([refused]).splitlines()[0] == "# look: this must fail"
    assert transcript([silent]).splitlines()[0] == "# look: this must print nothing"


def test_what_dscl_prints_is_read() -> None:
    text = (
        "dsAttrTypeNative:IsHidden: 1\nAppleMetaNodeLocation: /Local/Default\n"
        "NFSHomeDirectory:\n /Library/Application Support/Verger/home\nUniqueID: 701\n"
    )
    found = parse_record(text)
    assert found["IsHidden"] == "1"
    assert found["NFSHomeDirectory"] == "/Library/Application Support/Verger/home"
    assert found["UniqueID"] == "701"
    assert parse_ids("_amavisd   83\nnobody     -2\nada   501\n") == {83, -2, 501}
