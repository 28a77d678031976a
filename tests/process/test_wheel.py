"""The wheel without its extras: what is in it, what it needs, and that its commands work.

It is installed without a network: unpacked into an empty environment, and beside it copies of the
libraries that it says it needs. `test_wheel_serves.py` has pip install it.
"""

import json
import os
import shutil
import subprocess
import venv
import zipfile
from collections import Counter
from collections.abc import Iterator
from importlib.metadata import Distribution, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.fake_instance import MODEL_ID, fake_instance
from verger import __version__

pytestmark = pytest.mark.process

MAX_INSTALLED_BYTES = 30_000_000


@pytest.fixture(scope="module")
def site_packages(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel and what it needs, nothing else, in an environment of their own."""
    environment = tmp_path_factory.mktemp("bare") / "an environment"
    venv.create(environment, symlinks=True)
    (site,) = environment.glob("lib/python*/site-packages")
    zipfile.ZipFile(wheel).extractall(site)
    (metadata,) = site.glob("verger-*.dist-info")
    for needed in _needed(Distribution.at(metadata)):
        for file in needed.files or ():
            if ".." not in file.parts:  # Scripts lie outside.
                (site / file).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(str(file.locate()), site / file)
    return site


def _needed(wanting: Distribution) -> Iterator[Distribution]:
    """All that a distribution requires without any extra, directly or not, as installed here."""
    seen: set[str] = set()
    unseen = list(wanting.requires or ())
    while unseen:
        requirement = Requirement(unseen.pop())
        is_wanted = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
        if is_wanted and requirement.name not in seen:
            seen.add(requirement.name)
            yield (found := distribution(requirement.name))
            unseen += found.requires or ()


def run(site: Path, *arguments: str, **environment: str) -> str:
    """What the environment's Python prints, started in a foreign folder."""
    python = site.parents[2] / "bin" / "python"
    done = subprocess.run(
        [python, "-P", *arguments],
        cwd=site.parents[3],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_wheel_holds_models_launchd_and_no_tests(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    for needed in (
        "models/nano.toml",
        "models/gpt-oss-20b.toml",
        "models/providers/openrouter.toml",
        "launchd/README.md",
        "launchd/com.verger.server.plist",
    ):
        assert f"verger/_data/{needed}" in names
    assert "verger/py.typed" in names
    top = {name.split("/")[0] for name in names}
    assert {name for name in top if not name.endswith(".dist-info")} == {"verger"}


def test_the_installed_wheel_finds_its_own_data(site_packages: Path) -> None:
    program = (
        "from verger import paths\n"
        "from verger.catalogue import load_catalogue\n"
        "from verger.costs.prices import load_snapshot\n"
        "print(paths.data_dir())\n"
        "print(*load_catalogue(paths.catalogue_dir()))\n"
        "print(*load_snapshot(paths.catalogue_dir()).indices)"
    )
    assert run(site_packages, "-c", program).splitlines() == [
        str(site_packages / "verger" / "_data"),
        "nano gpt-oss-20b gpt-oss-120b",
        "4.3 2025-08",
    ]


@pytest.mark.parametrize(
    "command",
    ["--help", "config", "models", "serve --help", "env --help", "cost", "providers rank", "usage"],
)
def test_the_commands_work_without_the_engine(site_packages: Path, command: str) -> None:
    assert run(site_packages, "-m", "verger.cli.main", *command.split())


def test_a_colleagues_commands_work_without_the_engine(site_packages: Path, tmp_path: Path) -> None:
    """Browsing is left to a look at loopback, where nobody answers."""

    def verger(*arguments: str) -> str:
        return run(site_packages, "-m", "verger.cli.main", *arguments, HOME=str(tmp_path))

    with fake_instance() as instance:
        (row,) = json.loads(verger("discover", "--json", "--url", instance.url))["instances"]
        assert (row["models"], row["is_ready"]) == ([MODEL_ID], True)
        exports = verger("env", "--url", instance.url, "--shell", "sh").splitlines()
        assert exports[0] == f"export OPENAI_BASE_URL='{instance.url}/v1'"
        assert verger("connect", "opencode", "--url", instance.url, "--write")
    written = json.loads((tmp_path / ".config" / "opencode" / "opencode.json").read_text())
    assert MODEL_ID in written["provider"]["verger"]["models"]
    browse = "from verger.lan.browse import browse; print(browse(0.2, ['127.0.0.1']))"
    assert run(site_packages, "-c", browse) == "[]\n"


def test_serving_without_the_engine_says_how_to_get_it(site_packages: Path) -> None:
    done = subprocess.run(
        [site_packages.parents[2] / "bin" / "python", "-m", "verger.cli.main", "serve"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 3
    assert "pip install 'verger[engine]'" in done.stderr


def test_the_wheel_and_what_it_needs_are_small(site_packages: Path) -> None:
    sizes: Counter[str] = Counter()
    for path in site_packages.rglob("*"):
        if path.is_file():
            sizes[path.relative_to(site_packages).parts[0]] += path.stat().st_size
    assert sizes.total() < MAX_INSTALLED_BYTES, sizes.most_common(6)


def test_a_wheel_installs_its_own_version_as_a_service(site_packages: Path) -> None:
    """As it is planned; there is no checkout to install from."""
    printed = run(site_packages, "-m", "verger.cli.main", "service", "install", "--dry-run")
    assert f"verger[engine]=={__version__}" in printed
    assert "com.verger.server.plist" in printed
