"""The state folder changes hands: to root by an uninstall, and back; nothing else goes with it."""

import os
from copy import deepcopy
from pathlib import Path

import pytest

from tests.fake_mac import FakeMac, source
from verger import paths
from verger.errors import StepFailed
from verger.macos.layout import TEMPLATE_NAME
from verger.macos.programs import Done, run_command
from verger.macos.service_plan import Wanted, install_steps, uninstall_steps
from verger.macos.steps import Run
from verger.macos.survey import Facts, survey

TEMPLATE = (paths.data_dir() / "launchd" / TEMPLATE_NAME).read_bytes()


@pytest.fixture
def fake(tmp_path: Path) -> FakeMac:
    """With the service, and somebody's file that has a second name in the service's models."""
    fake = FakeMac(tmp_path / "mac")
    install(fake)
    return fake


def facts(fake: FakeMac) -> Facts:
    return survey(fake.layout, fake, Path("/nowhere"), has_keys=True, has_model=True)


def install(fake: FakeMac) -> None:
    wanted = Wanted(source(), fake.private_python, TEMPLATE, "http://127.0.0.1:8374")
    fake.executor.carry_out(install_steps(fake.layout, facts(fake), wanted))


def uninstall(fake: FakeMac) -> None:
    steps = uninstall_steps(fake.layout, facts(fake), is_purge=False)
    fake.executor.carry_out(steps, is_undone=False)


def planted(fake: FakeMac) -> Path:
    """Somebody's file; its second name lies in the service's models."""
    file = fake.root / "Users" / "ada" / "notes"
    file.write_text("mine")
    fake.owners[str(file)] = "ada:staff"
    os.link(file, fake.layout.home / "models" / "model")
    return file


def test_a_reinstall_gives_no_file_away_that_is_somebody_elses(fake: FakeMac) -> None:
    uninstall(fake)
    planted(fake)
    before = deepcopy(fake.snapshot())
    told = r"/home/models/model; this file has another name.* everything is as it was before"
    with pytest.raises(StepFailed, match=told):
        install(fake)
    assert fake.snapshot() == before
    (fake.layout.home / "models" / "model").unlink()
    install(fake)
    assert fake.owners[str(fake.layout.home / "models")] == "_verger:admin"


def test_an_uninstall_takes_no_file_away_and_goes_on_once_it_is_gone(fake: FakeMac) -> None:
    planted(fake)
    with pytest.raises(StepFailed, match="/home/models/model; this file has another name"):
        uninstall(fake)
    assert fake.owners[str(fake.layout.home / "models")] == "_verger:admin"
    # Nobody but root gets in any more.
    assert fake.layout.home.stat().st_mode & 0o777 == 0o700
    (fake.layout.home / "models" / "model").unlink()
    uninstall(fake)
    assert fake.owners[str(fake.layout.home / "models")] == "root:wheel"
    assert uninstall_steps(fake.layout, facts(fake), is_purge=False) == []


def test_the_systems_own_find_names_a_file_with_a_second_name_and_no_link(fake: FakeMac) -> None:
    home = fake.layout.home
    (home / "models" / "link").symlink_to(planted(fake))
    (look,) = [
        step
        for step in uninstall_steps(fake.layout, facts(fake), is_purge=False)
        if isinstance(step, Run) and step.is_silent
    ]
    assert run_command(look.argv).out == f"{home / 'models' / 'model'}\n"
    (home / "models" / "model").unlink()
    assert run_command(look.argv) == Done(0)


def test_nobody_gets_into_the_folder_while_it_changes_hands(fake: FakeMac) -> None:
    """Also where an uninstall was cut off before it closed it."""
    uninstall(fake)
    fake.layout.home.chmod(0o755)
    modes: list[int] = []
    chown = fake._chown

    def watching(arguments: list[str]) -> object:
        if "-R" in arguments:
            modes.append(fake.layout.home.stat().st_mode & 0o777)
        return chown(arguments)

    fake._chown = watching  # type: ignore[method-assign, assignment]
    install(fake)
    assert modes
    assert set(modes) == {0o700}
