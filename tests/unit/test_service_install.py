"""Installing, upgrading, removing the service, on a Mac of stand-ins; what a failure leaves."""

import json
from copy import deepcopy
from pathlib import Path

import pytest

from tests.fake_mac import FakeMac, source
from verger import paths
from verger.errors import InstallError, PlistError, ServiceDrift, StepFailed
from verger.macos.layout import TEMPLATE_NAME
from verger.macos.service_plan import KEPT_STATE, Wanted, install_steps, uninstall_steps
from verger.macos.source import Interpreter, Source
from verger.macos.steps import Remove, Step
from verger.macos.survey import Facts, survey

TEMPLATE = (paths.data_dir() / "launchd" / TEMPLATE_NAME).read_bytes()
URL = "http://127.0.0.1:8374"
ORDER = ["enable", "bootstrap", "kickstart", "print"]


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeMac:
    monkeypatch.setattr(Interpreter, "is_in_a_home", property(lambda p: "Users" in p.prefix.parts))
    return FakeMac(tmp_path / "mac")


def facts(fake: FakeMac, *, has_model: bool = True, has_keys: bool | None = None) -> Facts:
    interpreter = fake.layout.interpreters / "cpython-3.13" / "bin" / "python3.13"
    known = fake.layout.record.exists() if has_keys is None else has_keys
    return survey(fake.layout, fake, interpreter, has_keys=known, has_model=has_model)


def plan(fake: FakeMac, of: Source | None = None, *, has_model: bool = True) -> list[Step]:
    wanted = Wanted(of or source(), fake.private_python, TEMPLATE, URL)
    return install_steps(fake.layout, facts(fake, has_model=has_model), wanted)


def install(fake: FakeMac, of: Source | None = None, *, has_model: bool = True) -> None:
    steps = plan(fake, of, has_model=has_model)
    fake.calls.clear()
    fake.executor.carry_out(steps)


def test_a_fresh_install_runs_under_its_own_account(fake: FakeMac) -> None:
    install(fake)
    layout, user = fake.layout, fake.records["/Users/_verger"]
    assert (user["UniqueID"], user["UserShell"], user["IsHidden"]) == ("701", "/usr/bin/false", "1")
    assert fake.records["/Groups/_verger"]["PrimaryGroupID"] == "701"
    assert layout.current.resolve() == layout.environment("0.1.0-1")
    assert fake.owners[str(layout.home)] == "_verger:admin"
    assert layout.home.stat().st_mode & 0o777 == 0o750
    assert fake.owners[str(layout.plist)] == "root:wheel"
    assert 'host = "0.0.0.0"' in (layout.home / "config.toml").read_text()
    assert json.loads(layout.record.read_text())["environment"] == "0.1.0-1"
    assert fake.is_loaded
    assert fake.verbs() == ORDER
    assert "vg-1f0c9a3e-secret" in fake.said


def test_the_environment_is_complete_before_the_job_is_touched(fake: FakeMac) -> None:
    install(fake)
    names = [" ".join(call) for call in fake.changes()]
    order = ["-m venv", "-r lock", "-- here", "config --json", "keys add", "bootstrap"]
    positions = [next(n for n, name in enumerate(names) if part in name) for part in order]
    assert positions == sorted(positions)


def test_an_interpreter_in_a_home_is_copied_out_and_one_outside_is_used(fake: FakeMac) -> None:
    install(fake)
    copied = fake.layout.interpreters / "cpython-3.13" / "bin" / "python3.13"
    assert copied.exists()
    assert fake.owners[str(copied.parents[1])] == "root:wheel"
    outside = Interpreter(Path("/opt/p/bin/python3"), Path("/opt/p"))
    steps = install_steps(fake.layout, Facts(), Wanted(source(), outside, TEMPLATE, URL))
    assert not any("copy the interpreter" in step.what for step in steps)
    assert any("/opt/p/bin/python3" in getattr(step, "argv", ()) for step in steps)


def test_a_second_install_has_nothing_to_do(fake: FakeMac) -> None:
    install(fake)
    assert plan(fake) == []


def test_a_stopped_service_is_only_started(fake: FakeMac) -> None:
    install(fake)
    fake.is_loaded = False
    install(fake)
    assert fake.verbs() == ORDER
    assert len(fake.changes()) == 3


def test_without_a_model_it_is_started_all_the_same(fake: FakeMac) -> None:
    fake.has_model = False
    install(fake, has_model=False)
    assert (fake.is_loaded, fake.is_enabled, fake.verbs()) == (True, True, ORDER)
    assert plan(fake, has_model=False) == []
    install(fake, source("2"), has_model=False)
    assert fake.layout.current.readlink() == Path("env/0.1.0-2")


def test_a_version_that_dies_without_a_model_gives_way_to_the_old_one(fake: FakeMac) -> None:
    fake.has_model = False
    install(fake, has_model=False)
    fake.pauses.clear()
    fake.dead = {"0.1.0-2"}
    with pytest.raises(StepFailed, match=r"/livez.*not within 60 s"):
        install(fake, source("2"), has_model=False)
    assert len(fake.pauses) == 29
    assert fake.layout.current.readlink() == Path("env/0.1.0-1")


def failure(fake: FakeMac, steps: list[Step], number: int | None, **how: bool) -> StepFailed | None:
    """What comes of carrying them out while one of the calls fails."""
    fake.calls.clear()
    fake.fail_at = number
    try:
        fake.executor.carry_out(steps, **how)
    except StepFailed as error:
        return error
    finally:
        fake.fail_at = None
    return None


def test_wherever_it_fails_everything_is_as_it_was(fake: FakeMac) -> None:
    """Each of its calls fails once; only a question whose answer is not needed may do so."""
    before = deepcopy(fake.snapshot())
    steps, failures = plan(fake), 0
    assert failure(fake, steps, None) is None
    calls, changes = len(fake.calls), len(fake.changes())
    remove(fake)
    for number in range(calls):
        if error := failure(fake, steps, number):
            failures += 1
            assert str(error).endswith("; everything is as it was before")
            assert "\n" not in str(error)
        else:
            remove(fake)
        assert fake.snapshot() == before, number
    assert failures >= changes


def remove(fake: FakeMac) -> None:
    fake.executor.carry_out(uninstall_steps(fake.layout, facts(fake), is_purge=True))
    fake.owners.clear()
    fake.is_enabled = True


@pytest.mark.parametrize("obstacle", ["env", "home", "current"])
def test_where_it_cannot_write_everything_is_as_it_was(fake: FakeMac, obstacle: str) -> None:
    fake.layout.folder.mkdir()
    fake.layout.folder.chmod(0o755)
    (fake.layout.folder / obstacle).write_text("in the way")
    before = deepcopy(fake.snapshot())
    with pytest.raises(StepFailed, match="everything is as it was before"):
        install(fake)
    assert fake.snapshot() == before


def test_a_link_in_the_place_of_a_folder_is_not_followed(fake: FakeMac) -> None:
    install(fake)
    elsewhere = fake.root / "elsewhere"
    elsewhere.mkdir(mode=0o711)
    fake.layout.log.rmdir()
    fake.layout.log.symlink_to(elsewhere)
    with pytest.raises(StepFailed, match="a symbolic link stands there"):
        install(fake)
    assert elsewhere.stat().st_mode & 0o777 == 0o711
    assert fake.layout.log.is_symlink()
    assert str(elsewhere) not in fake.owners


def test_an_upgrade_keeps_state_and_the_version_before(fake: FakeMac) -> None:
    for name in ("1", "2", "3"):
        install(fake, source(name))
        (fake.layout.home / "config.toml").write_text("# mine\n")
        (fake.layout.home / "verger.db").write_bytes(b"keys")
    assert fake.layout.current.readlink() == Path("env/0.1.0-3")
    assert {path.name for path in fake.layout.environments.iterdir()} == {"0.1.0-2", "0.1.0-3"}
    assert (fake.layout.home / "config.toml").read_text() == "# mine\n"
    assert fake.verbs() == ["bootout", "print", *ORDER]
    assert not any("before-upgrade" in str(path) for path in fake.layout.home.iterdir())
    assert not any("keys" in call for call in fake.changes())


def test_a_version_that_does_not_answer_gives_way_to_the_old_one(fake: FakeMac) -> None:
    install(fake)
    database = fake.layout.home / "verger.db"
    database.write_bytes(b"as the old version wrote it")
    database.chmod(0o600)
    fake.owners[str(database)] = "_verger:admin"
    fake.layout.crash_log.write_text("first\nverger: it broke\n")
    before = deepcopy(fake.snapshot())
    steps = plan(fake, source("2"))
    fake.dead = {"0.1.0-2"}
    with pytest.raises(StepFailed, match=r"not within 300 s \(verger: it broke\); everything is"):
        fake.executor.carry_out(steps)
    assert sum(fake.pauses) < 300
    assert fake.is_loaded
    assert fake.snapshot() == before
    assert fake.verbs()[-3:] == ["bootout", "print", "bootstrap"]


def test_the_old_version_gets_its_database_back(fake: FakeMac) -> None:
    """A newer one may have changed it before it failed."""
    install(fake)
    database = fake.layout.home / "verger.db"
    database.write_bytes(b"old")
    steps = plan(fake, source("2"))
    curl = fake._curl

    def changing(arguments: list[str]) -> object:
        database.write_bytes(b"new")
        database.with_name("verger.db-wal").write_bytes(b"more")
        return curl(arguments)

    fake.dead, fake._curl = {"0.1.0-2"}, changing  # type: ignore[method-assign, assignment]
    with pytest.raises(StepFailed):
        fake.executor.carry_out(steps)
    assert database.read_bytes() == b"old"
    assert not database.with_name("verger.db-wal").exists()


def test_wherever_an_upgrade_fails_the_old_version_runs(fake: FakeMac) -> None:
    install(fake)
    database = fake.layout.home / "verger.db"
    database.write_bytes(b"old")
    database.with_name("verger.db.before-upgrade").write_bytes(b"of an upgrade that was killed")
    steps = plan(fake, source("2"))
    assert failure(fake, steps, None) is None
    calls, failures = len(fake.calls), 0
    fake.executor.carry_out(plan(fake, source("1")))
    fake.executor.carry_out([Remove(path=fake.layout.environment("0.1.0-2"))])
    for number in range(calls):
        if error := failure(fake, steps, number):
            failures += 1
            assert str(error).endswith("; everything is as it was before")
            assert fake.is_loaded
            assert fake.layout.current.readlink() == Path("env/0.1.0-1")
            assert not fake.layout.environment("0.1.0-2").exists()
            assert database.read_bytes() == b"old"
        else:
            fake.executor.carry_out(plan(fake, source("1")))
            fake.executor.carry_out([Remove(path=fake.layout.environment("0.1.0-2"))])
    assert failures > 10


def test_what_could_not_be_undone_is_named(fake: FakeMac) -> None:
    steps = plan(fake)
    fake.dead = {"0.1.0-1"}
    fake.__class__ = type("NoDelete", (FakeMac,), {"_dscl": _without_delete})
    with pytest.raises(StepFailed, match="could not be undone: .*not allowed"):
        fake.executor.carry_out(steps)


def _without_delete(self: FakeMac, arguments: list[str]) -> object:
    from verger.macos.programs import Done

    if "-delete" in arguments:
        return Done(1, err="not allowed")
    return FakeMac._dscl(self, arguments)


def test_a_job_that_goes_slowly_is_waited_for(fake: FakeMac) -> None:
    install(fake)
    fake.lingering = 3
    install(fake, source("2"))
    assert fake.verbs() == ["bootout", *["print"] * 4, *ORDER]
    assert fake.pauses == [1.0] * 3


def test_a_job_that_never_goes_stops_the_upgrade(fake: FakeMac) -> None:
    install(fake)
    fake.lingering = 1_000
    with pytest.raises(StepFailed, match="wait until the service is gone: not within 90 s"):
        install(fake, source("2"))
    assert fake.layout.current.readlink() == Path("env/0.1.0-1")


def test_an_edited_plist_is_noticed_and_an_older_one_is_not_called_edited(fake: FakeMac) -> None:
    install(fake)
    assert not facts(fake).is_edited
    fake.layout.plist.write_bytes(
        fake.layout.plist.read_bytes().replace(b"Interactive", b"Adaptive")
    )
    assert facts(fake).is_edited
    install(fake)
    assert not facts(fake).is_edited


def test_what_is_half_there_is_named_and_an_install_completes_it(fake: FakeMac) -> None:
    assert facts(fake).missing == []
    install(fake)
    assert facts(fake).missing == []
    fake.layout.current.unlink()
    (fake.layout.environment("0.1.0-1") / "complete").unlink()
    del fake.records["/Users/_verger"]["UserShell"]
    fake.is_loaded = False
    assert facts(fake).missing == ["the link current", "its environment"]
    install(fake)
    assert facts(fake).missing == []
    assert fake.records["/Users/_verger"]["UserShell"] == "/usr/bin/false"
    assert plan(fake) == []


def test_a_damaged_record_is_not_guessed_at(fake: FakeMac) -> None:
    install(fake)
    fake.layout.record.write_text("{")
    with pytest.raises(ServiceDrift, match="is damaged"):
        facts(fake)


def test_a_launchctl_that_does_not_work_is_told_before_anything_is_done(fake: FakeMac) -> None:
    fake.fail_at = 0
    with pytest.raises(InstallError, match="launchctl does not work"):
        facts(fake)


def test_a_template_that_breaks_a_rule_is_not_installed(fake: FakeMac) -> None:
    template = TEMPLATE.replace(b"Interactive", b"Background")
    with pytest.raises(PlistError, match="ProcessType is Background"):
        install_steps(fake.layout, Facts(), Wanted(source(), fake.private_python, template, URL))


def test_an_account_that_is_not_ours_is_left_alone(fake: FakeMac) -> None:
    fake.records["/Users/_verger"] = {"UniqueID": "220", "PrimaryGroupID": "220"}
    with pytest.raises(InstallError, match="id 220 that Verger has not made"):
        plan(fake)


def test_ids_that_are_taken_are_passed_over_up_to_the_last(fake: FakeMac) -> None:
    fake.records |= {f"/Users/u{n}": {"UniqueID": str(n)} for n in range(701, 799)}
    install(fake)
    assert fake.records["/Users/_verger"]["UniqueID"] == "799"


def test_with_all_ids_taken_there_is_no_account(fake: FakeMac) -> None:
    fake.records |= {f"/Users/u{n}": {"UniqueID": str(n)} for n in range(701, 800)}
    with pytest.raises(InstallError, match="no id from 701 to 799"):
        plan(fake)


def test_uninstalling_keeps_models_keys_and_settings_for_root(fake: FakeMac) -> None:
    install(fake)
    home = fake.layout.home
    for name in ("verger.db", "verger.db-wal", "instance_id", "admin.sock"):
        (home / name).touch()
    (home / "cache").mkdir()
    fake.executor.carry_out(
        uninstall_steps(fake.layout, facts(fake), is_purge=False), is_undone=False
    )
    left = {path.name for path in home.iterdir()}
    assert left == {*KEPT_STATE, "verger.db-wal"} - {"tls"}
    assert [path.name for path in fake.layout.folder.iterdir()] == ["home"]
    assert fake.owners[str(home / "verger.db")] == "root:wheel"
    assert (fake.records, fake.is_loaded, fake.layout.plist.exists()) == ({}, False, False)
    assert uninstall_steps(fake.layout, facts(fake), is_purge=False) == []


def test_what_an_uninstall_left_is_taken_up_again(fake: FakeMac) -> None:
    install(fake)
    (fake.layout.home / "verger.db").touch()
    fake.executor.carry_out(
        uninstall_steps(fake.layout, facts(fake), is_purge=False), is_undone=False
    )
    install(fake)
    assert fake.owners[str(fake.layout.home / "verger.db")] == "_verger:admin"
    assert fake.is_loaded


def test_purging_leaves_nothing(fake: FakeMac) -> None:
    before = set(fake.root.rglob("*"))
    install(fake)
    fake.executor.carry_out(
        uninstall_steps(fake.layout, facts(fake), is_purge=True), is_undone=False
    )
    assert set(fake.root.rglob("*")) == before
    assert fake.records == {}
    assert uninstall_steps(fake.layout, facts(fake), is_purge=True) == []


def test_an_uninstall_that_is_cut_off_is_completed_by_the_next(fake: FakeMac) -> None:
    install(fake)
    steps = uninstall_steps(fake.layout, facts(fake), is_purge=True)
    # The account is the last thing to go.
    error = failure(fake, steps, 3, is_undone=False)
    assert "run the command again" in str(error)
    assert "/Groups/_verger" in fake.records
    fake.executor.carry_out(uninstall_steps(fake.layout, facts(fake), is_purge=True))
    assert (fake.records, fake.layout.folder.exists()) == ({}, False)
