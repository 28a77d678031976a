"""What is assumed of Macs and rented GPUs: what ships, and what takes its place."""

import re
from pathlib import Path

import pytest

from tests.prices import MINI
from verger import paths
from verger.catalogue import load_catalogue
from verger.costs.assumptions import Assumption, listed, load_gpus, load_macs
from verger.costs.formulas import RentedGpu
from verger.errors import ConfigError, SnapshotError


def test_a_mac_is_assumed_for_every_model_but_the_embedded_one() -> None:
    models = set(load_catalogue(paths.catalogue_dir())) - {"nano"}
    assert set(load_macs(paths.catalogue_dir())) == models


def test_the_mini_is_the_one_that_the_formulas_were_checked_with() -> None:
    assert load_macs(paths.catalogue_dir())["gpt-oss-20b"].assumed.machine() == MINI


def test_everything_assumed_has_a_source() -> None:
    macs, gpus = load_macs(paths.catalogue_dir()), load_gpus(paths.catalogue_dir())
    assert gpus
    files = [*(listed(mac.assumed) for mac in macs.values()), *(listed(g.assumed) for g in gpus)]
    assert all(assumption.source for file in files for assumption in file.values())


def test_a_rented_gpu_for_the_formulas() -> None:
    (gpu,) = load_gpus(paths.catalogue_dir())
    assert gpu.assumed.gpu() == RentedGpu(usd_per_h=3.95, scaledown_s=300, cold_start_s=460)


def test_what_is_known_takes_the_place_of_what_is_assumed() -> None:
    mac = load_macs(paths.catalogue_dir())["gpt-oss-20b"]
    known = mac.with_known({"years": Assumption(5, "--years")})
    assert known.assumed.years == Assumption(5, "--years")
    assert known.assumed.busy == mac.assumed.busy
    assert known.assumed.machine().years == 5


def test_a_machine_that_draws_more_when_idle_is_refused() -> None:
    mac = load_macs(paths.catalogue_dir())["gpt-oss-20b"]
    wrong = mac.with_known({"idle_w": Assumption(70, "--idle-w")})
    with pytest.raises(ConfigError, match=re.escape("is less than idle_w (70, --idle-w)")):
        wrong.assumed.machine()


def test_a_damaged_file_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "machines").mkdir()
    file = tmp_path / "machines" / "m.toml"
    file.write_text('model = "m"\n')
    with pytest.raises(SnapshotError, match=re.escape(str(file))):
        load_macs(tmp_path)
