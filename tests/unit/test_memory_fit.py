"""Which model fits which Mac, by the rule of macOS and the catalogue's figures."""

import re
from pathlib import Path

import pytest

from verger import paths
from verger.catalogue import load_catalogue, needed_machine
from verger.memory_fit import GIB, MachineMemory, Need, smallest_mac_gib

CATALOGUE = load_catalogue(paths.catalogue_dir())
README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("memory_gib", "usable_gib"), [(16, 10.67), (24, 16), (36, 24), (48, 36), (64, 48), (128, 96)]
)
def test_macos_lets_the_gpu_hold_two_thirds_or_three_quarters(
    memory_gib: int, usable_gib: float
) -> None:
    memory = MachineMemory.of(memory_gib * GIB)
    assert memory.usable_bytes / GIB == pytest.approx(usable_gib, abs=0.01)


def test_a_wired_limit_that_somebody_set_counts_instead() -> None:
    assert MachineMemory.of(64 * GIB, 56 * GIB) == MachineMemory(64 * GIB, 56 * GIB)


@pytest.mark.parametrize(
    ("memory_gib", "fitting"),
    [
        (16, []),
        (24, ["gpt-oss-20b"]),
        (36, ["gpt-oss-20b"]),
        (64, ["gpt-oss-20b"]),
        (96, ["gpt-oss-20b", "gpt-oss-120b"]),
        (128, ["gpt-oss-20b", "gpt-oss-120b"]),
    ],
)
def test_what_fits_a_mac(memory_gib: int, fitting: list[str]) -> None:
    memory = MachineMemory.of(memory_gib * GIB)
    real = [model for model in CATALOGUE.values() if model.repository]
    assert [model.id for model in real if model.fits(memory)] == fitting


def test_the_embedded_model_fits_a_gigabyte() -> None:
    assert CATALOGUE["nano"].fits(MachineMemory.of(GIB))


@pytest.mark.parametrize("spare_bytes", [0, -1])
def test_a_need_fits_up_to_the_last_byte(spare_bytes: int) -> None:
    need = Need(weight_bytes=10, kv_bytes=5, step_bytes=2)
    assert need.fits(MachineMemory(100, 17 + spare_bytes)) is (spare_bytes == 0)


def test_the_smallest_mac_for_a_need() -> None:
    assert smallest_mac_gib(Need(16 * GIB)) == 24
    assert smallest_mac_gib(Need(16 * GIB + 1)) == 32
    assert smallest_mac_gib(Need(1 << 50)) is None


def test_the_readme_names_the_smallest_mac_for_each_model() -> None:
    for model in CATALOGUE.values():
        if model.repository:
            needs = re.findall(rf"^\| `{model.id}` \|.*\| (.*) \|$", README, re.M)
            assert needs == [needed_machine(model)]
            size_gib = smallest_mac_gib(model.need)
            assert model.description.endswith(f"for Macs with {size_gib} GB or more")


def test_what_is_not_counted_is_not_mentioned() -> None:
    shortage = Need(GIB).shortage("mine", MachineMemory(2 * GIB, GIB // 2))
    assert shortage == (
        "mine does not fit this machine: it needs 1.0 GiB (1.0 GiB of weights), and may take "
        "0.5 GiB of the 2.0 GiB that there are"
    )
