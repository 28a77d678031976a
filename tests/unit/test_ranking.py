"""The table of prices per point, and `verger providers rank` that prints it."""

import datetime
import json
from pathlib import Path

import pytest

from tests.command_line import Verger
from verger import paths
from verger.costs.prices import Snapshot, load_snapshot
from verger.costs.ranking import LOCAL, QUOTED, LocalOffer, rank
from verger.errors import SnapshotError

TODAY = datetime.date(2026, 11, 23)


@pytest.fixture
def shipped() -> Snapshot:
    return load_snapshot(paths.catalogue_dir())


def test_the_cheapest_point_stands_first(shipped: Snapshot) -> None:
    rows = rank(shipped).rows
    assert [row.usd_per_point for row in rows] == sorted(row.usd_per_point for row in rows)
    first = rows[0]
    assert (first.model, first.provider, first.index) == ("gpt-oss-20b", "openrouter", 9)
    assert first.usd_per_point == pytest.approx(0.04 * 1.055 / 9)


def test_the_seeds_table(shipped: Snapshot) -> None:
    rows = {row.model: row for row in rank(shipped, "2025-08").rows if row.provider == QUOTED}
    points = {model: round(row.usd_per_point, 4) for model, row in rows.items()}
    assert points == {
        "gpt-oss-20b": 0.0018,
        "gpt-5-nano": 0.0026,
        "gpt-oss-120b": 0.0043,
        "gpt-5-mini": 0.0108,
    }


def test_a_table_has_scores_of_one_version_only(shipped: Snapshot) -> None:
    """What that version does not score is named, not given another version's points."""
    newest = rank(shipped)
    assert newest.index_version == "4.3"
    assert {row.index for row in newest.rows} == {9, 12}
    assert newest.left_out == ["gpt-5-mini", "gpt-5-nano"]
    assert rank(shipped, "2025-08").left_out == []


def test_this_mac_is_one_row(shipped: Snapshot) -> None:
    local = LocalOffer("gpt-oss-20b", 0.01, TODAY, "a test")
    first = rank(shipped, local=local).rows[0]
    assert (first.provider, first.fee, first.date) == (LOCAL, 0, TODAY)
    assert first.usd_per_point == pytest.approx(0.01 / 9)


def test_a_model_of_this_mac_without_a_score_is_left_out(shipped: Snapshot) -> None:
    ranking = rank(shipped, local=LocalOffer("nano", 0.01, TODAY, "a test"))
    assert "nano" in ranking.left_out


def test_a_version_that_is_not_there_is_refused_with_those_that_are(shipped: Snapshot) -> None:
    with pytest.raises(SnapshotError, match="there are 4.3, 2025-08"):
        rank(shipped, "5")
    with pytest.raises(SnapshotError, match="no index"):
        rank(Snapshot())


def test_the_command_prints_the_table_and_its_sources(verger: Verger) -> None:
    text = verger("providers", "rank").out
    (line,) = [line for line in text.splitlines() if line.startswith("gpt-oss-20b    openrouter")]
    assert line.split()[2:] == ["9", "0.040", "5.5%", "0.00469", "2026-09-03"]
    assert "this Mac" in text
    assert "version 4.3, Artificial Analysis" in text
    assert "Not scored in this version: gpt-5-mini, gpt-5-nano" in text


def test_the_command_as_json(verger: Verger) -> None:
    body = json.loads(verger("providers", "rank", "--json", "--index", "2025-08").out)
    assert (body["schema_version"], body["index_version"]) == (1, "2025-08")
    macs = [row for row in body["rows"] if row["provider"] == LOCAL]
    assert [row["model"] for row in macs] == ["gpt-oss-20b"]
    assert "10% of the time" in macs[0]["source"]


def test_measured_rates_make_this_mac_cheaper(verger: Verger) -> None:
    def local(*flags: str) -> float:
        body = json.loads(verger("providers", "rank", "--json", *flags).out)
        (row,) = [row for row in body["rows"] if row["provider"] == LOCAL]
        return float(row["blended_usd"])

    faster = local("--decode-tok-s", "240", "--prefill-tok-s", "2400")
    # Half the time for the same tokens; the power at work is the same for half as long.
    assert faster == pytest.approx(local() / 2)
    assert local("--busy", "1") < local() / 8


def test_an_unknown_version_is_one_line(verger: Verger) -> None:
    outcome = verger("providers", "rank", "--index", "5")
    assert (outcome.status, outcome.out) == (3, "")
    assert outcome.err == "verger: no version 5 of the index; there are 4.3, 2025-08\n"


def test_fetched_prices_are_taken_where_they_are_newer(verger: Verger, verger_home: Path) -> None:
    (verger_home / "fetched" / "prices").mkdir(parents=True)
    file = verger_home / "fetched" / "prices" / "openrouter-2026-11-01.toml"
    text = (paths.catalogue_dir() / "prices" / "openrouter-2026-09-03.toml").read_text()
    file.write_text(text.replace("2026-09-03", "2026-11-01").replace("= 0.02", "= 0.01"))
    rows = json.loads(verger("providers", "rank", "--json").out)["rows"]
    assert (rows[0]["date"], rows[0]["blended_usd"]) == ("2026-11-01", pytest.approx(0.0325))
