"""By which addresses this machine can be asked, so that nobody is told to open 0.0.0.0."""

from __future__ import annotations

import ipaddress
import socket
import struct
import sys
from pathlib import Path

# linux/sockios.h: the IPv4 address of an interface, which the kernel writes behind its name and the address family.
_SIOCGIFADDR = 0x8915
_NAME, _PLACE = 256, slice(20, 24)
_IPV6 = Path("/proc/net/if_inet6")
# Nothing is sent there: RFC 5737 keeps it for documentation.
_ELSEWHERE = ("192.0.2.1", 9)


def addresses_of(host: str) -> tuple[str, ...]:
    """The host itself; where it stands for every address, those of the interfaces, loopback last; never empty."""
    if host == "localhost" or not ipaddress.ip_address(host).is_unspecified:
        return (host,)
    found = [*_ipv4(), *(_ipv6() if ":" in host else ())]
    return (*(each for each in dict.fromkeys(found) if not ipaddress.ip_address(each).is_loopback), "127.0.0.1")


def bracketed(host: str) -> str:
    """The host as it stands in a URL and in a Host header: IPv6 in its short form in brackets."""
    return f"[{ipaddress.ip_address(host).compressed}]" if ":" in host else host


def _ipv4() -> list[str]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        if sys.platform == "linux":
            return [found for _, name in socket.if_nameindex() if (found := _of_interface(asking, name))]
        try:
            asking.connect(_ELSEWHERE)
        except OSError:
            return []
        return [str(asking.getsockname()[0])]


def _of_interface(asking: socket.socket, name: str) -> str | None:
    import fcntl

    try:
        answer = fcntl.ioctl(asking, _SIOCGIFADDR, struct.pack(f"{_NAME}s", name.encode()))
    except OSError:
        return None
    return socket.inet_ntoa(answer[_PLACE])


def _ipv6() -> list[str]:
    """Of every scope but that of one link, whose addresses are of no use without the name of the interface."""
    rows = _IPV6.read_text("ascii").split("\n") if _IPV6.exists() else []
    found = [ipaddress.IPv6Address(bytes.fromhex(row[:32])) for row in rows if row]
    return [each.compressed for each in found if not each.is_link_local]
