"""Which interfaces are chosen, on machines as they are found in offices."""

import pytest
from ifaddr import IP, Adapter

from verger.errors import LanError
from verger.lan.interfaces import MAX_INTERFACES, choose_interfaces, reachable_addresses


def adapter(name: str, *addresses: str, index: int = 7) -> Adapter:
    ips = []
    for address in addresses:
        host, _, prefix = address.partition("/")
        ips.append(IP((host, 0, 0) if ":" in host else host, int(prefix), name))
    return Adapter(name, name, ips, index)


MAC = [
    adapter("lo0", "127.0.0.1/8", "::1/128", "fe80::1/64", index=1),
    adapter("en0", "192.168.1.20/24", "fe80::c/64", "2001:db8::20/64", index=4),
    adapter("en5", index=5),
    adapter("awdl0", "fe80::d/64"),
    adapter("llw0", "fe80::e/64"),
    adapter("utun3", "100.64.0.3/32", "fe80::f/64"),
    adapter("bridge100", "192.168.64.1/24"),
    adapter("ap1", "fe80::a/64"),
]
LINUX = [
    adapter("lo", "127.0.0.1/8", "::1/128"),
    adapter("eth0", "10.0.0.5/16"),
    adapter("wlp2s0", "10.1.0.5/16"),
    adapter("docker0", "172.17.0.1/16"),
    adapter("br-3f0a", "172.18.0.1/16"),
    adapter("veth12ab", "fe80::1/64"),
    adapter("tailscale0", "100.64.0.9/32"),
    adapter("wg0", "10.9.0.1/24"),
    adapter("office-vpn", "10.8.0.2/32"),
    adapter("virbr0", "192.168.122.1/24"),
]
WINDOWS = [
    adapter("Software Loopback Interface 1", "127.0.0.1/8"),
    adapter("Intel(R) Ethernet Connection", "192.168.1.30/24"),
    adapter("Hyper-V Virtual Ethernet Adapter", "172.20.0.1/20"),
]


@pytest.mark.parametrize(
    ("adapters", "names"),
    [
        (MAC, ["en0"]),
        (LINUX, ["eth0", "wlp2s0"]),
        (WINDOWS, ["Intel(R) Ethernet Connection"]),
    ],
)
def test_the_offices_network_is_chosen_and_nothing_else(
    adapters: list[Adapter], names: list[str]
) -> None:
    assert [interface.name for interface in choose_interfaces((), adapters)] == names


@pytest.mark.parametrize(
    ("named", "expected"),
    [
        (["lo0"], [("lo0", 1, True)]),
        (["192.168.64.1"], [("bridge100", 7, False)]),
        (["en0", "127.0.0.1"], [("en0", 4, False), ("lo0", 1, True)]),
    ],
)
def test_what_is_named_is_taken_whatever_it_is(
    named: list[str], expected: list[tuple[str, int, bool]]
) -> None:
    chosen = choose_interfaces(named, MAC)
    assert [(found.name, found.index, found.is_loopback) for found in chosen] == expected


def test_an_interface_named_by_an_address_has_that_one_only() -> None:
    (lan,) = choose_interfaces(["2001:db8::20"], MAC)
    assert [str(address) for address in lan.addresses] == ["2001:db8::20/64"]
    assert lan.mdns_address == "2001:db8::20"


def test_an_interface_named_twice_is_taken_once() -> None:
    (lan,) = choose_interfaces(["2001:db8::20", "192.168.1.20", "192.168.1.20"], MAC)
    assert [str(address.ip) for address in lan.addresses] == ["2001:db8::20", "192.168.1.20"]


@pytest.mark.parametrize("named", [["en1"], ["en0", "10.0.0.1"], ["en5"]])
def test_an_interface_that_is_not_there_is_named_with_what_there_is(named: list[str]) -> None:
    with pytest.raises(LanError, match=rf"{named[-1]}; .*\[lan\] interfaces: lo0, en0"):
        choose_interfaces(named, MAC)


def test_without_a_network_there_is_a_reason() -> None:
    with pytest.raises(LanError, match="looks like the office's network; .* lo0$"):
        choose_interfaces((), MAC[:1])
    with pytest.raises(LanError, match="looks like the office's network$"):
        choose_interfaces((), [])


@pytest.mark.parametrize(("present", "taken"), [(MAX_INTERFACES, 16), (MAX_INTERFACES + 1, 16)])
def test_no_more_interfaces_than_the_limit(present: int, taken: int) -> None:
    adapters = [adapter(f"en{number}", f"10.0.{number}.1/24") for number in range(present)]
    assert len(choose_interfaces((), adapters)) == taken


@pytest.mark.parametrize(
    ("host", "addresses"),
    [
        ("0.0.0.0", ("192.168.1.20", "192.168.64.1")),
        ("192.168.64.1", ("192.168.64.1",)),
        ("::", ("2001:db8::20",)),
        ("127.0.0.1", ()),
        ("fe80::c", ()),
    ],
)
def test_only_addresses_that_are_listened_on_are_advertised(
    host: str, addresses: tuple[str, ...]
) -> None:
    chosen = choose_interfaces(["en0", "bridge100"], MAC)
    assert reachable_addresses(chosen, host) == addresses


@pytest.mark.parametrize(
    ("host", "is_on_link"),
    [
        ("192.168.1.254", True),
        ("192.168.2.1", False),
        ("2001:db8::1", True),
        ("2001:db8:1::1", False),
        ("office-mini", False),
    ],
)
def test_an_interface_knows_its_own_networks(host: str, is_on_link: bool) -> None:
    (lan,) = choose_interfaces(["en0"], MAC)
    assert lan.has_on_link(host) is is_on_link


def test_multicast_is_spoken_from_ipv4_where_there_is_one() -> None:
    (lan,) = choose_interfaces(["en0"], MAC)
    (radio,) = choose_interfaces(["awdl0"], MAC)
    assert (lan.mdns_address, radio.mdns_address) == ("192.168.1.20", "fe80::d")


def test_the_systems_own_interfaces_are_asked() -> None:
    (loopback,) = choose_interfaces(["127.0.0.1"])
    assert loopback.is_loopback
    assert loopback.index >= 1
