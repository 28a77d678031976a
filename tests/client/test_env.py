"""`verger env`: what the shell is told, who is trusted, and where keys go."""

import json
import os
import re
from pathlib import Path

import pytest

from tests.client.conftest import Network
from tests.client.pinning import KEY, give_key, pin_of, variables
from tests.command_line import Outcome, Verger
from tests.fake_instance import ID, OTHER_ID, FakeInstance, fake_instance
from verger import paths
from verger.cli import instances
from verger.cli.pins import Pin
from verger.errors import InstanceError
from verger.lan.browse import Found

NASTY = [
    "x'; touch owned; '",
    "$(touch owned)",
    "`touch owned`",
    "a\nexport OPENAI_BASE_URL=http://evil",
    "a\x1b[2Jb",
    "’; touch owned; ’",
    "-n",
    "",
    "n" * 64,
]


def test_the_shell_gets_both_urls_and_only_assignments(
    verger: Verger, instance: FakeInstance
) -> None:
    outcome = verger("env", "--shell", "sh")
    assert variables(outcome) == {
        "OPENAI_BASE_URL": f"{instance.url}/v1",
        "OPENAI_API_KEY": "unused",
        "ANTHROPIC_BASE_URL": instance.url,
        "ANTHROPIC_API_KEY": "unused",
    }
    assert all(re.fullmatch(r"export [A-Z_]+='[^']*'", line) for line in outcome.out.splitlines())
    assert "first use of office-mini" in outcome.err


@pytest.mark.slow
def test_the_second_use_is_silent_and_needs_no_browsing(
    verger: Verger, instance: FakeInstance, network: Network
) -> None:
    first = verger("env", "office-mini")
    network.browsed.clear()
    second = verger("env", "office-mini")
    assert second == Outcome(0, first.out, "")
    assert network.browsed == []


def test_the_pin_is_private_and_says_who_it_was(verger: Verger, instance: FakeInstance) -> None:
    verger("env")
    file = paths.pins_file()
    assert json.loads(file.read_text())["version"] == 1
    assert pin_of("office-mini") == Pin("office-mini", ID, "127.0.0.1", instance.port, None)
    if os.name == "posix":
        assert file.stat().st_mode & 0o777 == 0o600


def test_fish_and_powershell(verger: Verger, instance: FakeInstance) -> None:
    fish = verger("env", "--shell", "fish").out.splitlines()
    assert fish[0] == f"set -gx OPENAI_BASE_URL '{instance.url}/v1'"
    powershell = verger("env", "--shell", "powershell").out.splitlines()
    assert powershell[0] == f"$env:OPENAI_BASE_URL = '{instance.url}/v1'"


@pytest.mark.parametrize("name", NASTY)
def test_a_hostile_name_reaches_neither_shell_nor_terminal(
    verger: Verger, network: Network, name: str
) -> None:
    with fake_instance() as hostile:
        network.found.append(hostile.found(name))
        outcome = verger("env")
        assert (outcome.status, outcome.out) == (3, "")
        assert outcome.err.isascii()
        assert "\x1b" not in outcome.err
        assert hostile.requests == []


@pytest.mark.slow
@pytest.mark.parametrize(
    "host", ["x';touch owned;'", "$(id)", "a b", "h\nost", "-x.local", "x" * 254]
)
def test_a_hostile_host_is_not_used(
    verger: Verger, network: Network, instance: FakeInstance, host: str
) -> None:
    advert = network.found[0].advert
    network.found[0] = Found(advert, host, ("$(id)", "fe80::1", "127.0.0.1"))
    assert variables(verger("env"))["OPENAI_BASE_URL"] == f"{instance.url}/v1"


@pytest.mark.parametrize("addresses", [(), ("$(id)",), ("fe80::1%en0",)])
def test_without_a_usable_address_there_is_no_server(
    verger: Verger, network: Network, instance: FakeInstance, addresses: tuple[str, ...]
) -> None:
    network.found[0] = Found(network.found[0].advert, "$(id).local", addresses)
    outcome = verger("env")
    assert (outcome.status, outcome.out) == (3, "")
    assert instance.requests == []


@pytest.mark.parametrize("port", [0, -1, 65_536])
def test_a_port_that_is_none_is_not_used(
    verger: Verger, network: Network, instance: FakeInstance, port: int
) -> None:
    network.found[:] = [instance.found(port=port)]
    assert verger("env").status == 3
    assert instance.requests == []


@pytest.mark.slow
@pytest.mark.parametrize(
    "url",
    [
        "http://x'; touch owned; '",
        "http://$(id):1/v1",
        "http://user:secret@127.0.0.1",
        "ftp://127.0.0.1",
        "http://127.0.0.1:1/other",
        "http://127.0.0.1:1?a=b",
        "http://127.0.0.1:70000",
        "http://[::1%25en0]:1",
        "",
    ],
)
def test_a_url_that_is_more_than_an_address_is_wrong_usage(verger: Verger, url: str) -> None:
    outcome = verger("env", "--url", url)
    assert (outcome.status, outcome.out) == (2, "")


def test_a_url_is_used_without_browsing(
    verger: Verger, instance: FakeInstance, network: Network
) -> None:
    assert variables(verger("env", "--url", instance.url))["ANTHROPIC_BASE_URL"] == instance.url
    assert network.browsed == []
    assert pin_of(f"127.0.0.1-{instance.port}").id == ID


def test_several_servers_have_to_be_told_apart(
    verger: Verger, instance: FakeInstance, network: Network
) -> None:
    network.found.append(instance.found("other-mini"))
    outcome = verger("env")
    assert (outcome.status, outcome.out) == (2, "")
    assert "office-mini, other-mini" in outcome.err
    assert verger("env", "other-mini").status == 0


def test_nothing_found_says_what_to_try(verger: Verger, network: Network) -> None:
    outcome = verger("env", "--timeout", "0.5", "--interfaces", "lo")
    assert (outcome.status, outcome.out) == (3, "")
    for hint in ("--url", "Local Network", "multicast"):
        assert hint in outcome.err
    assert network.browsed == [(0.5, "lo")]


def test_an_unknown_name_is_answered_with_those_that_there_are(
    verger: Verger, instance: FakeInstance
) -> None:
    outcome = verger("env", "office-max")
    assert outcome.status == 3
    assert "Known: office-mini" in outcome.err


def test_without_multicast_the_only_server_that_was_used_is_found_again(
    verger: Verger, instance: FakeInstance, network: Network
) -> None:
    verger("env")
    network.found.clear()
    assert variables(verger("env"))["ANTHROPIC_BASE_URL"] == instance.url


def test_where_browsing_is_impossible_what_was_used_before_will_do(
    verger: Verger, instance: FakeInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(timeout_s: float, interfaces: str) -> list[Found]:
        raise InstanceError("no interface")

    monkeypatch.setattr(instances, "find", refuse)
    outcome = verger("env")
    assert (outcome.status, outcome.err) == (3, "verger: no interface\n")
    verger("env", "office-mini", "--url", instance.url)
    assert variables(verger("env"))["ANTHROPIC_BASE_URL"] == instance.url


def test_a_server_that_moved_is_found_by_browsing_and_refused(
    verger: Verger, instance: FakeInstance, network: Network, tmp_path: Path
) -> None:
    """Without TLS whoever copies name and id of a server that is off would get its key."""
    with fake_instance() as former:
        former.key = KEY
        assert give_key(verger, tmp_path, "office-mini", "--url", former.url).status == 0
    outcome = verger("env", "office-mini")
    assert (outcome.status, outcome.out) == (3, "")
    assert "--repin" in outcome.err
    assert instance.keys_seen == set()


def test_another_id_under_the_same_name_is_refused_and_gets_no_key(
    verger: Verger, instance: FakeInstance, network: Network, tmp_path: Path
) -> None:
    instance.key = KEY
    give_key(verger, tmp_path)
    instance.id, instance.requests = OTHER_ID, []
    network.found[:] = [instance.found()]

    for arguments in ([], ["office-mini"], ["office-mini", "--url", instance.url]):
        outcome = verger("env", *arguments)
        assert (outcome.status, outcome.out) == (3, "")
        assert "IS NOT THE SERVER" in outcome.err
        assert "--repin" in outcome.err
    refused = give_key(verger, tmp_path, "office-mini")
    assert refused.status == 3
    assert instance.keys_seen == set()
    assert pin_of("office-mini").id == ID


def test_repinning_accepts_the_new_identity_and_forgets_the_key(
    verger: Verger, instance: FakeInstance, network: Network, tmp_path: Path
) -> None:
    instance.key = KEY
    give_key(verger, tmp_path)
    instance.id, instance.requests = OTHER_ID, []
    network.found[:] = [instance.found()]

    repinned = verger("env", "office-mini", "--repin")
    assert variables(repinned)["OPENAI_API_KEY"] == "unused"
    assert instance.keys_seen == set()
    assert (pin_of("office-mini").id, pin_of("office-mini").key) == (OTHER_ID, None)


def test_a_server_that_is_not_the_advertised_one_is_refused_at_first_sight(
    verger: Verger, instance: FakeInstance, network: Network
) -> None:
    network.found[:] = [instance.found(id=OTHER_ID)]
    outcome = verger("env")
    assert outcome.status == 3
    assert "is not the office-mini that is advertised" in outcome.err
    assert not paths.pins_file().exists()


def test_what_sends_no_id_is_no_verger(verger: Verger, instance: FakeInstance) -> None:
    for headers in ({}, {"x-verger-id": "office-mini"}):
        instance.answers["/v1/health"] = (200, headers, b"")
        outcome = verger("env", "--url", instance.url)
        assert outcome.status == 3
        assert "is no Verger" in outcome.err


def test_a_host_name_that_the_server_does_not_answer_to_is_explained(
    verger: Verger, instance: FakeInstance
) -> None:
    instance.answers["/v1/health"] = (403, {}, b"{}")
    outcome = verger("env", "--url", instance.url)
    assert outcome.status == 3
    assert "allowed_hosts" in outcome.err


def test_a_server_that_is_too_busy_for_questions_is_still_pointed_at(
    verger: Verger, instance: FakeInstance
) -> None:
    instance.answers["/v1/models"] = (429, {}, b"{}")
    outcome = verger("env")
    assert variables(outcome)["ANTHROPIC_BASE_URL"] == instance.url
    assert "status 429" in outcome.err


def test_a_server_that_loads_is_still_pointed_at(verger: Verger, instance: FakeInstance) -> None:
    instance.is_ready = False
    outcome = verger("env")
    assert variables(outcome)["ANTHROPIC_BASE_URL"] == instance.url
    assert "not ready" in outcome.err
