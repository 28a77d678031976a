"""`verger discover`: what the list says of each server, and what is sent to find out."""

import json
import threading
from typing import Any

import pytest

from tests.client.conftest import Network
from tests.command_line import Verger
from tests.fake_instance import ID, MODEL_ID, OTHER_ID, FakeInstance, fake_instance
from verger import paths
from verger.cli import discover, instances, session
from verger.cli.instances import MAX_INSTANCES
from verger.cli.pins import Pin, load_pins
from verger.connect.address import Address
from verger.errors import InstanceError, Unreachable
from verger.lan import browse
from verger.lan.browse import Found

KEY = "vg-abc-0123456789"


def listed(verger: Verger, *arguments: str) -> list[dict[str, Any]]:
    outcome = verger("discover", "--json", *arguments)
    assert outcome.status == 0, outcome.err
    body = json.loads(outcome.out)
    assert body["schema_version"] == 1
    rows: list[dict[str, Any]] = body["instances"]
    return rows


def pin(instance: FakeInstance, key: str | None = None, **changes: Any) -> None:
    fields = {"name": "office-mini", "id": ID, "host": "127.0.0.1", "port": instance.port}
    load_pins(paths.pins_file()).put(Pin(**{**fields, "certificate": None, "key": key, **changes}))


def test_an_open_server_is_listed_with_its_load(verger: Verger, instance: FakeInstance) -> None:
    assert listed(verger) == [
        {
            "name": "office-mini",
            "url": f"{instance.url}/v1",
            "id": ID,
            "models": [MODEL_ID],
            "needs_key": False,
            "has_tls": False,
            "is_pinned": False,
            "is_reachable": True,
            "is_ready": True,
            "running": 3,
            "queued": 5,
            "problem": None,
        }
    ]
    text = verger("discover").out.splitlines()
    assert text[0].split() == ["name", "url", "models", "key", "state"]
    assert text[1].split("  ")[0] == "office-mini"
    assert text[1].endswith("none  ready, 3 running, 5 waiting")


def test_a_keyed_server_gets_its_key_and_tells_its_load(
    verger: Verger, instance: FakeInstance, network: Network
) -> None:
    instance.key = KEY
    network.found[:] = [instance.found()]
    (stranger,) = listed(verger)
    assert (stranger["needs_key"], stranger["running"]) == (True, None)
    assert instance.keys_seen == set()
    pin(instance, KEY)
    (known,) = listed(verger)
    assert (known["is_pinned"], known["running"], known["models"]) == (True, 3, [MODEL_ID])
    pin(instance, "vg-revoked")
    (revoked,) = listed(verger)
    assert (revoked["running"], revoked["problem"]) == (None, "it refuses the stored key")


@pytest.mark.parametrize(
    "changes", [{"id": OTHER_ID}, {"port": 1}, {"host": "127.0.0.2"}, {"certificate": "trusted"}]
)
def test_the_key_is_not_sent_to_what_is_not_the_pinned_server(
    verger: Verger, instance: FakeInstance, changes: dict[str, Any]
) -> None:
    pin(instance, KEY, **changes)
    (row,) = listed(verger)
    assert (row["is_reachable"], row["is_pinned"]) == (False, False)
    assert "IS NOT THE SERVER" in row["problem"]
    assert instance.keys_seen == set()


def test_a_server_that_is_not_the_advertised_one_is_shown_as_such(
    verger: Verger, instance: FakeInstance, network: Network
) -> None:
    network.found[:] = [instance.found(id=OTHER_ID)]
    (row,) = listed(verger)
    assert not row["is_reachable"]
    assert "that is advertised" in row["problem"]


def test_one_that_does_not_answer_does_not_hold_up_the_others(
    verger: Verger, instance: FakeInstance, network: Network
) -> None:
    with fake_instance() as gone:
        network.found.append(gone.found("gone"))
    rows = {row["name"]: row for row in listed(verger)}
    assert rows["office-mini"]["is_reachable"]
    assert not rows["gone"]["is_reachable"]
    assert "unusable: cannot reach" in verger("discover").out


def test_all_servers_are_asked_at_once(
    verger: Verger, network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each waits until the other has been asked as well."""
    both = threading.Barrier(2, timeout=5)
    greet = session.greet

    def greet_together(address: Address) -> session.Greeting:
        both.wait()
        return greet(address)

    monkeypatch.setattr(session, "greet", greet_together)
    with fake_instance() as one, fake_instance() as other:
        network.found += [one.found("one"), other.found("other")]
        assert [row["is_reachable"] for row in listed(verger)] == [True, True]


def test_a_server_that_never_answers_costs_only_the_time_set_for_all(
    verger: Verger, instance: FakeInstance, network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    let_go = threading.Event()
    monkeypatch.setattr(discover, "PROBE_S", 0.2)

    def hang(address: Address) -> session.Greeting:
        let_go.wait(30)
        raise Unreachable("too late")

    monkeypatch.setattr(session, "greet", hang)
    outcome = verger("discover")
    let_go.set()
    assert outcome.status == 3
    assert "office-mini did not answer" in outcome.err


def test_what_answers_in_another_shape_is_no_verger(verger: Verger, instance: FakeInstance) -> None:
    for body in (b"<html>", b'{"data": 1}', b"\xff"):
        instance.answers["/v1/models"] = (200, {}, body)
        (row,) = listed(verger)
        assert "does not answer as a Verger would" in row["problem"]


def test_a_url_is_asked_for_what_an_advert_would_say(
    verger: Verger, instance: FakeInstance, network: Network
) -> None:
    (row,) = listed(verger, "--url", instance.url)
    assert (row["models"], row["needs_key"], row["id"]) == ([MODEL_ID], False, ID)
    instance.key = KEY
    (row,) = listed(verger, "--url", instance.url)
    assert (row["models"], row["needs_key"]) == ([], True)
    assert network.browsed == []


def test_hostile_adverts_are_counted_and_not_shown(
    verger: Verger, instance: FakeInstance, network: Network
) -> None:
    evil = "$(touch owned)\x1b[2J"
    network.found += [
        instance.found(evil),
        instance.found("a", path="/v2"),
        Found(instance.found("b").advert, evil, (evil,)),
    ]
    network.found[0] = instance.found(model_ids=(MODEL_ID, evil))
    outcome = verger("discover")
    assert "3 adverts left out" in outcome.err
    assert evil not in outcome.out + outcome.err
    assert len(listed(verger)) == 1


def test_nothing_found_says_what_to_try(verger: Verger, network: Network) -> None:
    outcome = verger("discover", "--json")
    assert outcome.status == 3
    assert json.loads(outcome.out) == {"schema_version": 1, "instances": []}
    assert "--url" in outcome.err


@pytest.mark.parametrize("count", [MAX_INSTANCES, MAX_INSTANCES + 1])
def test_no_more_adverts_are_looked_at_than_an_office_can_have(
    count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[float, list[str]]] = []
    one = FakeInstance(port=8374).found()

    def browse_many(timeout_s: float, interfaces: list[str]) -> list[Found]:
        asked.append((timeout_s, interfaces))
        return [one] * count

    monkeypatch.setattr(browse, "browse", browse_many)
    assert len(instances.find(0.1, " lo, 10.0.0.1,")) == MAX_INSTANCES
    assert asked == [(0.1, ["lo", "10.0.0.1"])]


def test_a_network_that_cannot_be_browsed_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(timeout_s: float, interfaces: list[str]) -> list[Found]:
        raise OSError("No such device")

    monkeypatch.setattr(browse, "browse", refuse)
    with pytest.raises(InstanceError, match="No such device.*--url"):
        instances.find(0.1, "")


@pytest.mark.parametrize("seconds", ["0", "61", "x"])
def test_a_timeout_out_of_bounds_is_wrong_usage(verger: Verger, seconds: str) -> None:
    assert verger("discover", "--timeout", seconds).status == 2
