"""Dated prices and indices: what ships, which of several counts, and what is refused."""

import re
from datetime import date
from pathlib import Path

import pytest

from verger import paths
from verger.costs.formulas import blended_usd
from verger.costs.prices import Snapshot, load_snapshot
from verger.errors import SnapshotError

PRICES = """
provider = "acme"
date = {date}
source = "a test"
fee = 0.1
[models.m]
input_usd = {usd}
output_usd = 2.0
"""


@pytest.fixture
def shipped() -> Snapshot:
    return load_snapshot(paths.catalogue_dir())


def write_prices(folder: Path, day: str, usd: float) -> None:
    (folder / "prices").mkdir(parents=True, exist_ok=True)
    file = folder / "prices" / f"acme-{day}.toml"
    file.write_text(PRICES.format(date=day, usd=usd))


def test_the_seeds_table_is_there_as_quoted(shipped: Snapshot) -> None:
    scores = {index.model: (index.value, index.quoted_usd) for index in shipped.indices["2025-08"]}
    assert scores == {
        "gpt-oss-120b": (61, 0.26),
        "gpt-oss-20b": (49, 0.09),
        "gpt-5-mini": (64, 0.69),
        "gpt-5-nano": (54, 0.14),
    }


def test_the_newer_version_has_scores_of_its_own(shipped: Snapshot) -> None:
    assert list(shipped.indices) == ["4.3", "2025-08"]
    found = [
        shipped.index(model, effort=effort)
        for model in ("gpt-oss-120b", "gpt-oss-20b")
        for effort in ("high", "low")
    ]
    assert [index.value for index in found if index] == [12, 10, 9, 10]
    assert all(index and index.version == "4.3" for index in found)


def test_what_openrouters_floor_is(shipped: Snapshot) -> None:
    price = shipped.price("openrouter", "gpt-oss-120b")
    assert price is not None
    assert (price.input_usd, price.output_usd, price.fee) == (0.03, 0.17, 0.055)
    assert (price.date, price.snapshot_id) == (date(2026, 9, 3), "openrouter-2026-09-03")


def test_the_price_quoted_for_gpt_5_mini_is_that_of_its_list(shipped: Snapshot) -> None:
    price, index = shipped.price("openai", "gpt-5-mini"), shipped.index("gpt-5-mini")
    assert price is not None
    assert index is not None
    assert blended_usd(price) == pytest.approx(index.quoted_usd, abs=0.005)


def test_everything_that_ships_says_where_it_comes_from(shipped: Snapshot) -> None:
    assert all(offer.price.source for offer in shipped.offers)
    assert all(index.source for scores in shipped.indices.values() for index in scores)


def test_points_of_different_versions_are_not_compared(shipped: Snapshot) -> None:
    old, new = shipped.index("gpt-oss-120b", "2025-08"), shipped.index("gpt-oss-20b", "4.3")
    assert old is not None
    assert new is not None
    with pytest.raises(SnapshotError, match=re.escape("61 points in version 2025-08")) as refused:
        old.is_at_least(new)
    assert "cannot be compared" in str(refused.value)


@pytest.mark.parametrize(
    ("model", "minimum", "meets"),
    [
        ("gpt-oss-120b", "gpt-oss-20b", True),
        ("gpt-oss-20b", "gpt-oss-20b", True),
        ("gpt-oss-20b", "gpt-oss-120b", False),
        ("gpt-5-mini", "gpt-oss-20b", True),
        ("gpt-oss-20b", "gpt-5-nano", False),
    ],
)
def test_models_are_compared_in_a_version_that_has_both(
    model: str, minimum: str, meets: bool, shipped: Snapshot
) -> None:
    """The GPT-5 are scored in the older version only."""
    assert shipped.meets(model, minimum) is meets


def test_models_that_no_version_has_both_of_are_not_compared(shipped: Snapshot) -> None:
    with pytest.raises(SnapshotError, match="no version of the index scores both"):
        shipped.meets("gpt-oss-20b", "gpt-7")
    with pytest.raises(SnapshotError, match="versions: none"):
        Snapshot().meets("gpt-oss-20b", "gpt-oss-20b")


def test_what_is_not_written_down_is_not_known(shipped: Snapshot) -> None:
    assert shipped.price("openai", "gpt-oss-20b") is None
    assert shipped.index("gpt-5-mini", "4.3") is None
    assert shipped.index("gpt-oss-20b", effort="medium") is None


def test_of_several_prices_the_newest_counts_whichever_folder_it_is_in(tmp_path: Path) -> None:
    write_prices(tmp_path / "a", "2026-02-01", 1.0)
    write_prices(tmp_path / "b", "2026-03-01", 3.0)
    write_prices(tmp_path / "b", "2026-01-01", 2.0)
    for folders in (("a", "b"), ("b", "a")):
        snapshot = load_snapshot(*(tmp_path / folder for folder in folders))
        price = snapshot.price("acme", "m")
        assert price is not None
        assert (price.input_usd, price.snapshot_id) == (3.0, "acme-2026-03-01")
        assert len(snapshot.offers) == 1


def test_a_folder_that_is_not_there_is_empty(tmp_path: Path) -> None:
    assert load_snapshot(tmp_path / "none") == Snapshot(offers=(), indices={})


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("output_usd = 2.0", "", "output_usd"),
        ("output_usd", "output_eur", "output_eur"),
        ("output_usd = 2.0", "output_usd = -1", "output_usd"),
        ("fee = 0.1", "fee = 1.0", "fee"),
        ("2026-01-01", "2026-01-02", "belongs into acme-2026-01-02.toml"),
        ("2026-01-01", "1 January", "acme-2026-01-01.toml: "),
    ],
)
def test_a_damaged_file_is_refused_by_name(
    old: str, new: str, complaint: str, tmp_path: Path
) -> None:
    write_prices(tmp_path, "2026-01-01", 1.0)
    (file,) = (tmp_path / "prices").iterdir()
    file.write_text(file.read_text().replace(old, new))
    with pytest.raises(SnapshotError, match=re.escape(str(file))) as refused:
        load_snapshot(tmp_path)
    assert complaint in str(refused.value)


def test_a_damaged_index_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "indices").mkdir()
    file = tmp_path / "indices" / "1.toml"
    file.write_text('version = "1"\ndate = 2026-01-01\nsource = "s"\n[[scores]]\nmodel = "m"\n')
    with pytest.raises(SnapshotError, match="value"):
        load_snapshot(tmp_path)
