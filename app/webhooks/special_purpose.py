"""Address blocks that are nobody's public server, as IANA's registries list them.

Python's `is_global` says the same of most of them, but what it says depends on its patch level, and
some blocks count as global that no webhook has business with.

Sources: the IANA IPv4 and IPv6 Special-Purpose Address Registries (RFC 6890) and the addresses
under which clouds serve credentials and settings to the machines that ask.
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network

_BLOCKS_V4 = (
    # this network, RFC 791
    "0.0.0.0/8",
    # private, RFC 1918
    "10.0.0.0/8",
    "172.16.0.0/12",
    "192.168.0.0/16",
    # shared behind a carrier's NAT, RFC 6598; Alibaba's metadata are in it
    "100.64.0.0/10",
    # loopback, RFC 1122
    "127.0.0.0/8",
    # link-local, RFC 3927; most clouds' metadata are in it
    "169.254.0.0/16",
    # protocol assignments, RFC 6890; Oracle's metadata are in it
    "192.0.0.0/24",
    # documentation, RFC 5737
    "192.0.2.0/24",
    "198.51.100.0/24",
    "203.0.113.0/24",
    # AS112, RFC 7534 and 7535: whoever is nearest answers
    "192.31.196.0/24",
    "192.175.48.0/24",
    # automatic multicast tunnels, RFC 7450
    "192.52.193.0/24",
    # 6to4 relays, RFC 7526
    "192.88.99.0/24",
    # benchmarks, RFC 2544
    "198.18.0.0/15",
    # multicast, RFC 5771
    "224.0.0.0/4",
    # reserved, and the limited broadcast, RFC 1112 and 8190
    "240.0.0.0/4",
    # Azure's platform services: DNS, health probes and the settings of a machine
    "168.63.129.16/32",
)
# Only 2000::/3 is given out. All else is local, mapped, translated to IPv4 on its way, or unused.
_UNICAST_V6 = IPv6Network("2000::/3")
_BLOCKS_V6 = (
    # protocol assignments, RFC 2928: Teredo, AMT, ORCHID, drones, AS112, benchmarks
    "2001::/23",
    # documentation, RFC 3849 and 9637
    "2001:db8::/32",
    "3fff::/20",
    # 6to4, RFC 3056: an IPv4 address in IPv6
    "2002::/16",
    # AS112, RFC 7534
    "2620:4f:8000::/48",
)
_NETWORKS: tuple[IPv4Network | IPv6Network, ...] = tuple(map(ip_network, _BLOCKS_V4 + _BLOCKS_V6))


def is_public(address: IPv4Address | IPv6Address) -> bool:
    """Tell whether the address may be a server on the public internet."""
    if isinstance(address, IPv6Address) and (address.scope_id or address not in _UNICAST_V6):
        return False
    # Python may know blocks that came after this list.
    return address.is_global and not any(address in network for network in _NETWORKS)
