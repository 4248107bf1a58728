"""Access: where the dashboard listens, under which names, and who may read it. Decided once, before anything listens.

On loopback everybody on the machine may read. Anything else is refused without tokens, and without either TLS or the
word that a proxy in front speaks it: a token must not cross a network in the clear.
"""

import ssl
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

from coordinator.errors import UserError
from coordinator.tokens import Scope, TokenBook, default_path, read_tokens

LOOPBACK = "127.0.0.1"
LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What a command was told about access."""

    host: str = LOOPBACK
    tokens: Path | None = None
    tls_cert: Path | None = None
    tls_key: Path | None = None
    is_behind_proxy: bool = False
    """A proxy in front speaks TLS and forwards to here."""
    allowed_hosts: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Access:
    """How the dashboard may be reached."""

    host: str = LOOPBACK
    names: frozenset[str] = LOOPBACK_NAMES
    """Host names, lower case and without a port, that a request may be for. Its own address counts too."""
    book: TokenBook | None = None
    """Null where nobody needs a token."""
    tls: tuple[Path, Path] | None = None
    """Certificate chain and key, PEM."""
    is_behind_proxy: bool = False

    @property
    def is_secure(self) -> bool:
        """Whether browsers come by https."""
        return self.tls is not None or self.is_behind_proxy

    def url(self, port: int) -> str:
        """Where a browser on this machine finds it."""
        scheme = "http" if self.tls is None else "https"
        return f"{scheme}://{address_of(self.host, port)}/"


def decide_access(wish: Wish) -> Access:
    """What was wished for, if it is safe.

    Raises:
        UserError: another machine could read without a token, or a token could be read on its way; or a file is not
            what it should be.
    """
    tls = _tls(wish)
    if not is_loopback(wish.host) and tls is None and not wish.is_behind_proxy:
        raise UserError(
            f"the dashboard would listen on {wish.host} without TLS, where tokens can be read on their way.\n"
            "Give --tls-cert and --tls-key; or --behind-proxy, where a proxy in front speaks TLS; or leave the host "
            "out and reach it by `ssh -L 8420:127.0.0.1:8420`."
        )
    is_open_to_others = not is_loopback(wish.host) or wish.is_behind_proxy
    return Access(
        host=wish.host,
        names=LOOPBACK_NAMES | {_bare(wish.host)} | {_bare(name) for name in wish.allowed_hosts},
        book=require_book(wish.tokens, "read", what="the dashboard") if is_open_to_others or wish.tokens else None,
        tls=tls,
        is_behind_proxy=wish.is_behind_proxy,
    )


def require_book(path: Path | None, scope: Scope, *, what: str) -> TokenBook:
    """The tokens of a file, or of the usual one, of which at least one opens this.

    Raises:
        UserError: there is no such file or token.
    """
    path = path or default_path()
    make = f"`archfleet token create NAME --scope {scope} --tokens {path}`"
    if not path.exists():
        raise UserError(
            f"{what} would be open to others than this machine, and there is no token in {path}.\nMake one: {make}."
        )
    if not any(scope in token.scopes for token in read_tokens(path)):
        raise UserError(f"{path} has no token of scope {scope}, so nobody could use {what}.\nMake one: {make}.")
    return TokenBook(path)


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches what listens there."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def address_of(host: str, port: int) -> str:
    """Host and port as they stand in an URL; of all addresses, the loopback one."""
    host = {"0.0.0.0": LOOPBACK, "::": "::1"}.get(host, host)
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def is_host_allowed(header: bytes | None, names: frozenset[str], *, own_address: str | None) -> bool:
    """Whether a Host header names this dashboard.

    A page of evil.example whose name was made to lead here still says evil.example: so a browser cannot be used to read
    what only its user may read (DNS rebinding).
    """
    if header is None:
        return False
    try:
        name = host_of(header.decode("ascii"))
    except ValueError:
        return False
    return name is not None and (name in names or name == own_address)


def host_of(netloc: str) -> str | None:
    """Lower-case host of HOST, HOST:PORT or [HOST]:PORT; None where it is none of these."""
    name, bracket, port = netloc.partition("]")
    if bracket:
        name = name.removeprefix("[")
        port = port.removeprefix(":")
    else:
        name, _, port = netloc.partition(":")
    if not name or (port and not port.isdigit()):
        return None
    return name.lower().rstrip(".")


def _bare(name: str) -> str:
    """A name as `host_of` gives it."""
    return name.lower().strip("[]").rstrip(".")


def _tls(wish: Wish) -> tuple[Path, Path] | None:
    if wish.tls_cert is None and wish.tls_key is None:
        return None
    if wish.tls_cert is None or wish.tls_key is None:
        raise UserError("TLS needs both --tls-cert FILE and --tls-key FILE (PEM); one of them was given.")
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(wish.tls_cert, wish.tls_key, password="")
    except (OSError, ssl.SSLError) as error:
        raise UserError(
            f"cannot use the certificate {wish.tls_cert} with the key {wish.tls_key}: {error}.\n"
            "Both must be PEM files that belong together, and the key without a passphrase."
        ) from None
    return wish.tls_cert, wish.tls_key
