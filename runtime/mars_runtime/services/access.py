"""Who may talk to the page: everybody on this machine, or whoever holds the token; never a stranger's web page.

A browser that a stranger's page is open in can reach 127.0.0.1. Two guards: a request must name this machine as its
host (DNS rebinding does not), and what changes anything must come from the page itself.
"""

from __future__ import annotations

import hmac
import ipaddress
import re
import secrets
from dataclasses import dataclass
from email.message import Message
from http.cookies import CookieError, SimpleCookie

from mars_edge.errors import UsageError
from mars_runtime.services.addresses import bracketed

COOKIE = "mars_edge_token"
DEFAULT = "127.0.0.1:8350"
_SHORTEST = 8
_FITS_A_HEADER = re.compile(r"[A-Za-z0-9_.-]+")
# As http.server gives them: names in any case.
Headers = Message


@dataclass(frozen=True, kw_only=True)
class Address:
    """Where to listen."""

    host: str
    port: int

    @property
    def loopback(self) -> bool:
        """Whether only this machine can reach it."""
        return self.host == "localhost" or ipaddress.ip_address(self.host).is_loopback


def address_of(text: str) -> Address:
    """The address of HOST:PORT, PORT or [IPV6]:PORT; port 0 takes a free one.

    Raises:
        UsageError: no such form, or a host that is neither an IP address nor localhost.
    """
    host, colon, port = text.rpartition(":")
    host = (host.strip("[]") if colon else "127.0.0.1") or "127.0.0.1"
    where = f"--serve {text!r}"
    if not port.isdigit() or int(port) > 65535:
        raise UsageError(f"{where}: {port!r} is no port; allowed: [HOST:]PORT with a port of 0 to 65535")
    if host != "localhost":
        try:
            ipaddress.ip_address(host)
        except ValueError as error:
            raise UsageError(f"{where}: {host!r} is no IP address of this machine; an example: {DEFAULT}") from error
    return Address(host=host, port=int(port))


def token_for(address: Address, given: str | None) -> str | None:
    """The token to ask for: the given one; a new one where others can reach the address; None on loopback.

    Raises:
        UsageError: the given one is shorter than 8 characters, or holds what a cookie cannot.
    """
    if given is None:
        return None if address.loopback else secrets.token_urlsafe(18)
    if len(given) < _SHORTEST or not _FITS_A_HEADER.fullmatch(given):
        raise UsageError(f"--token has {len(given)} characters; allowed: 8 and more of A-Z, a-z, 0-9, -, _ and .")
    return given


def allowed(
    headers: Headers, query_token: str | None, token: str | None, here: Address, *, tls: bool = False
) -> str | None:
    """Why a request may not read; None when it may. `here` is where the server listens, with the port it got."""
    if token is None:
        return None if _names(here, headers.get("Host", ""), tls) else "unknown host"
    given = query_token or _bearer(headers) or _cookie(headers) or ""
    return None if hmac.compare_digest(given.encode(), token.encode()) else "token needed"


def may_change(headers: Headers) -> str | None:
    """Why a request that may read may not change anything; None when it may."""
    host, origin = headers.get("Host", ""), headers.get("Origin")
    if origin is not None and origin not in (f"http://{host}", f"https://{host}"):
        return "another page's request"
    # A form of a stranger's page cannot send this type without asking first.
    return None if headers.get("Content-Type", "").startswith("application/json") else "content type is not JSON"


def _names(here: Address, host: str, tls: bool) -> bool:
    """Whether a Host header names this machine: a loopback name or the address listened on, and the port."""
    name, colon, port = host.lower().rpartition(":")
    if not colon or port.endswith("]"):
        # A browser leaves out the port that the scheme implies.
        name, port = host.lower(), "443" if tls else "80"
    return name in {"127.0.0.1", "localhost", "[::1]", bracketed(here.host)} and port == str(here.port)


def cookie(token: str, *, tls: bool = False) -> str:
    """The Set-Cookie header that keeps the server's own token; nothing that a client sent belongs in a header."""
    return f"{COOKIE}={token}; HttpOnly; SameSite=Strict; Path=/" + ("; Secure" if tls else "")


def _bearer(headers: Headers) -> str | None:
    kind, _, value = headers.get("Authorization", "").partition(" ")
    return value.strip() if kind.lower() == "bearer" else None


def _cookie(headers: Headers) -> str | None:
    try:
        found = SimpleCookie(headers.get("Cookie", "")).get(COOKIE)
    except CookieError:
        return None
    return None if found is None else found.value
