"""The wheel carries its data, and finds it when no checkout is near."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.process


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    return next(folder.glob("*.whl"))


def test_the_wheel_holds_models_launchd_and_no_tests(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    for needed in ("models/nano.toml", "models/gpt-oss-20b.toml", "launchd/README.md"):
        assert f"verger/_data/{needed}" in names
    assert "verger/py.typed" in names
    top = {name.split("/")[0] for name in names}
    assert {name for name in top if not name.endswith(".dist-info")} == {"verger"}


def test_an_installed_wheel_finds_its_own_data(wheel: Path, tmp_path: Path) -> None:
    """Unpacked and put first on the path, as installing does; run from a foreign folder."""
    site = tmp_path / "site packages"
    zipfile.ZipFile(wheel).extractall(site)
    program = (
        f"import sys; sys.path.insert(0, {str(site)!r})\n"
        "from verger import paths\n"
        "from verger.catalogue import load_catalogue\n"
        "print(paths.data_dir())\n"
        "print(*load_catalogue(paths.catalogue_dir()))"
    )
    command = [sys.executable, "-P", "-c", program]
    done = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True)
    assert done.stdout.splitlines() == [
        str(site / "verger" / "_data"),
        "nano gpt-oss-20b gpt-oss-120b",
    ]
