"""Addresses and URLs from users, environments and run directories. Torch-free, Ray-free.

Every module that connects to an address parses it here, so that a malformed one is refused in one line, and shows it
through `shown_url`, so that no password reaches a message, a file or W&B.
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import SplitResult, parse_qsl, urlsplit, urlunsplit

from cluster.core.errors import RefusedError
from cluster.core.secrets import is_secret_name

FORMS = "HOST:6379, http://HOST:8265 or auto"
ADDRESS_VARIABLE = "RAY_ADDRESS"
"""The variable with the address of a cluster; the name is Ray's."""
NAMES = ("auto", "local")
"""Addresses that Ray resolves itself."""
_SCHEMES = ("http", "https", "ray")
_HOST_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9_.-]{0,252}[A-Za-z0-9.])?")
_SECRET_PARAMETERS = re.compile(
    r"(?<![a-z])(key|sig|sas|code|auth|session(id)?|sid|jsessionid|user|username|login|access)(?![a-z])", re.I
)
"""Names of parameters that carry secrets in URLs, beside those of `is_secret_name`."""
_LONG_VALUE = re.compile(r"(?=[A-Za-z]*[0-9])(?=[0-9]*[A-Za-z])[A-Za-z0-9]{16,}")
"""A part of a value that looks like a key: long, of letters and digits."""
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]{0,20}://[^\s\"'<>`]+")


class AddressError(RefusedError):
    """The text is not an address. The message is one line with the expected form."""


@dataclass(frozen=True, slots=True)
class Address:
    """The address of a Ray cluster or a job server."""

    scheme: str
    """`http`, `https`, `ray`, or empty."""
    host: str
    """The host; empty for one of `NAMES`."""
    port: int | None


def parse_address(text: str, origin: str = "") -> Address:
    """Return the parts of an address: HOST:PORT, a URL, or one of `NAMES`.

    Args:
        origin: The option or the file that the address comes from, for the message.

    Raises:
        AddressError: if it is not an address.
    """
    if text in NAMES:
        return Address("", "", None)
    if _unprintable(text):
        raise AddressError(_refusal(text, origin, "it contains blanks or control characters"))
    try:
        scheme, _, rest = text.rpartition("://")
        parts = urlsplit(f"{scheme or 'ray'}://{rest}")
        host, port = parts.hostname or "", parts.port
    except ValueError as error:
        raise AddressError(_refusal(text, origin, str(error))) from None
    if scheme and scheme.lower() not in _SCHEMES:
        raise AddressError(_refusal(text, origin, f"the scheme {scheme[:20]!r} is unknown"))
    if not _is_host(host):
        raise AddressError(_refusal(text, origin, "it names no host" if not host else "this is not a host"))
    if port is None and not scheme:
        raise AddressError(_refusal(text, origin, "the port is missing"))
    if port == 0:
        raise AddressError(_refusal(text, origin, "the port 0 does not exist"))
    if not scheme and (parts.path or parts.query or parts.fragment or "@" in parts.netloc):
        raise AddressError(_refusal(text, origin, "there is text around the host and the port"))
    return Address(scheme.lower(), host, port)


def cluster_address(given: str | None) -> str | None:
    """Return the address of the Ray cluster to connect to: `given`, or that of `RAY_ADDRESS`. None if there is neither,
    which means Ray on this machine. Every command calls this before it writes anything.

    Args:
        given: The address of an option or of a configuration, if there is one.

    Raises:
        AddressError: if it is not the address of a Ray cluster.
    """
    address = given or os.environ.get(ADDRESS_VARIABLE) or None
    # Ray itself looks at the variable to find out what `auto` means.
    found = os.environ.get(ADDRESS_VARIABLE) or given if given == "auto" else address
    if found is not None:
        refuse_job_server(found, "" if found == given else ADDRESS_VARIABLE)
    return address


def refuse_job_server(text: str, origin: str = "") -> Address:
    """Return the parts of an address that Ray connects to.

    Raises:
        AddressError: if it is not an address, or that of a job server.
    """
    parsed = parse_address(text, origin)
    if parsed.scheme.startswith("http"):
        where = f"{origin}: " if origin else ""
        raise AddressError(
            f"{where}{shown_url(text)} is a job server: launch.py submit sends a run to it. To connect from one of the "
            "cluster's own machines, give --address HOST:6379"
        )
    return parsed


def url_problem(url: str) -> str | None:
    """Return why requests cannot be sent to `url`, or why it must not be written down; None if it is in order. The
    answer does not quote the URL."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        return "its host or port is not valid: write it as http://host:port/path"
    if parts.scheme not in ("http", "https") or not _is_host(host) or port == 0 or _unprintable(url):
        return "write it as http://host:port/path"
    if "@" in parts.netloc:
        return "it contains a user name or a password"
    if secret_parameters(parts.query) or secret_parameters(parts.fragment):
        return f"its parameter {', '.join(secret_parameters(parts.query) or ['after #'])} looks like a secret"
    return None


def secret_parameters(query: str) -> list[str]:
    """Return the names of the parameters of a query that look like secrets, by their names or values."""
    return [
        name[:40]
        for name, value in parse_qsl(query, keep_blank_values=True)
        if _SECRET_PARAMETERS.search(name) or is_secret_name(name) or _LONG_VALUE.search(value)
    ]


def shown_url(url: str) -> str:
    """Return a URL for a message: without userinfo, query and fragment."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return "(a URL that is not valid)"
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def shown_text(text: str) -> str:
    """Return `text` with every URL in it as in `shown_url`."""
    return _URL.sub(lambda found: shown_url(found[0]), text)


def without_url_secrets(value: Any) -> Any:
    """Return a value of a configuration without the secrets in its URLs: userinfo, and parameters that look like
    secrets. Other parameters stay, because they are part of the setting."""
    if isinstance(value, str):
        return _URL.sub(lambda found: _without_secrets(found[0]), value) if "://" in value else value
    if isinstance(value, Mapping):
        return {key: without_url_secrets(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(without_url_secrets(item) for item in value)
    return value


def _without_secrets(url: str) -> str:
    try:
        parts = urlsplit(url)
    except ValueError:
        return shown_url(url)
    kept = SplitResult(
        parts.scheme,
        parts.netloc.rpartition("@")[2],
        parts.path,
        "&".join(_kept_parameters(parts.query)),
        "&".join(_kept_parameters(parts.fragment)),
    )
    return url if kept == parts else urlunsplit(kept)


def _kept_parameters(query: str) -> Iterator[str]:
    for parameter in query.split("&"):
        if not secret_parameters(parameter):
            yield parameter


def _is_host(host: str) -> bool:
    if _HOST_NAME.fullmatch(host):
        labels = host.removesuffix(".").split(
            "."
        )  # the socket library raises UnicodeError for impossible ones
        return all(0 < len(label) < 64 for label in labels)
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _unprintable(url: str) -> bool:
    return not url.isprintable() or any(character.isspace() for character in url)


def _refusal(text: str, origin: str, why: str) -> str:
    where = f"{origin}: " if origin else ""
    shown = repr(shown_text(text)[:80]) if "@" not in text.rpartition("://")[2] else "the text"
    return f"{where}{shown} is not an address ({why}); write it as {FORMS}"
