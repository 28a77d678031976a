"""What is made of the answers of the network, at each limit and beyond it."""

import pytest
from zeroconf import ServiceStateChange, Zeroconf
from zeroconf.asyncio import AsyncServiceInfo

from tests.unit.test_lan_records import ADVERT
from verger.lan.browse import MAX_ADDRESSES, MAX_FOUND, Found, Search, found_in
from verger.lan.records import SERVICE_TYPE, encode_txt


def service(
    addresses: list[str], host: str = "office-mini.local.", name: str = "office-mini"
) -> AsyncServiceInfo:
    return AsyncServiceInfo(
        SERVICE_TYPE,
        f"{name}.{SERVICE_TYPE}",
        port=ADVERT.port,
        properties=encode_txt(ADVERT),
        server=host,
        parsed_addresses=addresses,
    )


def note(search: Search, name: str, change: ServiceStateChange = ServiceStateChange.Added) -> None:
    nowhere: Zeroconf = None  # type: ignore[assignment]
    search.note(nowhere, SERVICE_TYPE, name, change)


def test_what_answers_is_found() -> None:
    found = found_in(service(["192.168.1.20", "2001:db8::20"]))
    assert found == Found(ADVERT, "office-mini.local", ("192.168.1.20", "2001:db8::20"))


def test_an_address_that_needs_a_scope_is_left_out() -> None:
    found = found_in(service(["169.254.7.7", "fe80::c"]))
    assert found is not None
    assert found.addresses == ("169.254.7.7",)
    assert found_in(service(["fe80::c"])) is None


@pytest.mark.parametrize("host", ["", "office mini.local.", "office-mini.example.org."])
def test_a_host_that_is_not_of_this_network_is_not_found(host: str) -> None:
    assert found_in(service(["192.168.1.20"], host)) is None


def test_what_is_not_known_in_full_is_not_found() -> None:
    assert found_in(AsyncServiceInfo(SERVICE_TYPE, f"office-mini.{SERVICE_TYPE}")) is None


@pytest.mark.parametrize("count", [MAX_ADDRESSES, MAX_ADDRESSES + 1])
def test_no_more_addresses_than_the_limit(count: int) -> None:
    found = found_in(service([f"10.0.0.{number}" for number in range(1, count + 1)]))
    assert found is not None
    assert len(found.addresses) == MAX_ADDRESSES


def test_no_more_servers_than_the_limit() -> None:
    search = Search()
    for number in range(MAX_FOUND):
        note(search, f"{number}")
    note(search, "one more")
    assert len(search.names) == MAX_FOUND
    assert "one more" not in search.names


def test_a_server_that_says_goodbye_is_forgotten() -> None:
    search = Search()
    note(search, "a")
    note(search, "b")
    note(search, "b", ServiceStateChange.Updated)
    note(search, "a", ServiceStateChange.Removed)
    assert list(search.names) == ["b"]
