"""On which network interfaces a server is advertised, and under which of their addresses.

Called by the gateway before it advertises and by `browse` before it asks. Left to itself it takes
what looks like the office's network: no loopback, tunnels, bridges or virtual machines' networks.
Must not know records. The system is asked through ifaddr, which zeroconf brings.
"""

import ipaddress
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from ipaddress import IPv4Interface, IPv6Interface

import ifaddr

from verger.errors import LanError

MAX_INTERFACES = 16
"""Each costs a socket and, on a Mac, two registrations."""
_LEFT_OUT = (
    # Linux and macOS: tunnels, bridges, containers, virtual machines, radio links to phones.
    *("lo", "tun", "tap", "utun", "wg", "ppp", "ipsec", "gif", "stf", "sit", "gre", "zt", "nebula"),
    *("tailscale", "bridge", "br-", "br0", "virbr", "lxc", "lxdbr", "docker", "podman", "veth"),
    *("cni", "cali", "flannel", "vmnet", "vmenet", "vnic", "vboxnet", "awdl", "llw", "ap", "anpi"),
    *("dummy", "ifb", "feth", "pflog", "pktap"),
    # Windows, where an interface is called what its adapter is.
    *("software loopback", "hyper-v", "virtualbox", "vmware", "tap-windows", "wireguard"),
)

Address = IPv4Interface | IPv6Interface


@dataclass(frozen=True, slots=True)
class Interface:
    """An interface that has been chosen, and its addresses with their networks."""

    name: str
    index: int
    addresses: tuple[Address, ...]
    """Those that have been chosen; never none."""

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine is behind it. A Mac's has a link-local address as well."""
        return any(address.is_loopback for address in self.addresses)

    @property
    def mdns_address(self) -> str:
        """The address from which multicast DNS is spoken: IPv4 where there is one."""
        return str(min(self.addresses, key=lambda address: address.version).ip)

    def has_on_link(self, host: str) -> bool:
        """Whether an address belongs to one of the interface's own networks."""
        try:
            address = ipaddress.ip_address(host)
        except ValueError:
            return False
        return any(address in own.network for own in self.addresses)


def choose_interfaces(
    named: Sequence[str], adapters: Iterable[ifaddr.Adapter] | None = None
) -> tuple[Interface, ...]:
    """The interfaces named by their names or addresses, else those that look like the office's.

    Raises LanError where there is none, or a named one does not exist; `adapters` are the system's.
    """
    there = [*map(_interface, ifaddr.get_adapters() if adapters is None else adapters)]
    present = [interface for interface in there if interface.addresses]
    if named:
        chosen = _merged(_named(name, present) for name in named)
    else:
        chosen = [interface for interface in present if _is_of_the_office(interface)]
    if not chosen:
        raise LanError(f"no interface looks like the office's network{_what_there_is(present)}")
    return tuple(chosen[:MAX_INTERFACES])


def reachable_addresses(interfaces: Iterable[Interface], host: str) -> tuple[str, ...]:
    """The addresses at which a server that listens on `host` is reached through the interfaces.

    Link-local IPv6 ones are left out: they need a scope, which URLs have no place for.
    """
    bound = ipaddress.ip_address(host)
    return tuple(
        str(address.ip)
        for interface in interfaces
        for address in interface.addresses
        if address.version == bound.version
        and (bound.is_unspecified or address.ip == bound)
        and not (address.version == 6 and address.is_link_local)
    )


def _interface(adapter: ifaddr.Adapter) -> Interface:
    addresses = tuple(
        ipaddress.ip_interface(f"{ip.ip[0] if isinstance(ip.ip, tuple) else ip.ip}/{prefix}")
        for ip in adapter.ips
        if (prefix := ip.network_prefix) is not None
    )
    return Interface(adapter.nice_name or adapter.name, adapter.index or 0, addresses)


def _named(name: str, present: Sequence[Interface]) -> Interface:
    for interface in present:
        if interface.name == name:
            return interface
        for address in interface.addresses:
            if str(address.ip) == name:
                return replace(interface, addresses=(address,))
    raise LanError(f"there is no interface or address {name}{_what_there_is(present)}")


def _merged(chosen: Iterable[Interface]) -> list[Interface]:
    """Each interface once, whether it was named by its name or by addresses."""
    merged: dict[str, Interface] = {}
    for interface in chosen:
        known = merged.get(interface.name, interface)
        addresses = dict.fromkeys((*known.addresses, *interface.addresses))
        merged[interface.name] = replace(interface, addresses=tuple(addresses))
    return [*merged.values()]


def _is_of_the_office(interface: Interface) -> bool:
    name = interface.name.lower()
    is_tunnel = all(address.network.num_addresses == 1 for address in interface.addresses)
    return not (name.startswith(_LEFT_OUT) or is_tunnel or interface.is_loopback)


def _what_there_is(present: Iterable[Interface]) -> str:
    names = ", ".join(interface.name for interface in present)
    return f"; name one in [lan] interfaces: {names}" if names else ""
