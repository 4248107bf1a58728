"""Access tokens: who may read the dashboard, who may scrape the metrics.

A token is 256 random bits, shown once when it is made. The file keeps its SHA-256 alone: whoever reads the file cannot
log in with what it holds, so only writing to it must be guarded. Several tokens are valid at once, so that one can be
replaced without a gap: make the new one, hand it out, revoke the old one.

    archfleet token create NAME  ->  aft_...            the file gets {id, name, scopes, sha256, created, expires}
    Authorization: Bearer aft_... ->  verdict()          compared in constant time with all of them
"""

import hashlib
import hmac
import os
import re
import tempfile
import tomllib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fcntl import LOCK_EX, flock
from pathlib import Path
from typing import Annotated, Literal, get_args

from pydantic import Field, ValidationError

from coordinator.errors import UserError
from hwprofiles.value import Value

Scope = Literal["read", "metrics"]
Refusal = Literal["missing", "bad", "expired", "scope"]
"""No token; none that is known; one that was valid once; a valid one that is for something else."""

SCOPES: tuple[Scope, ...] = get_args(Scope)
PREFIX = "aft_"
"""So that a token that lies about is known for one."""
NUM_RANDOM_BYTES = 32
MAX_FILE_BYTES = 1 << 20
SCHEMA_VERSION = 1
_NAME = "[A-Za-z0-9][A-Za-z0-9_.@-]{0,63}"
_WRITABLE_BY_OTHERS = 0o022


class Token(Value):
    """What is kept of a token. Times in seconds since 1970."""

    id: Annotated[str, Field(pattern="^[0-9a-f]{8}$")]
    name: Annotated[str, Field(pattern=f"^{_NAME}$")]
    scopes: Annotated[tuple[Scope, ...], Field(min_length=1)]
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    """Of the token's bytes, its prefix included."""
    created_unix: float
    expires_unix: float | None = None
    """Null where it is valid until it is revoked."""

    def is_expired(self, *, now_unix: float) -> bool:
        """Whether its time is over."""
        return self.expires_unix is not None and now_unix >= self.expires_unix


class _File(Value):
    schema_version: Literal[1]
    token: tuple[Token, ...] = ()


def default_path() -> Path:
    """Where `archfleet token` keeps tokens when it is not told."""
    home = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return Path(home) / "archfleet" / "tokens.toml"


# Deciding


def verdict(tokens: Sequence[Token], presented: bytes | None, scope: Scope, *, now_unix: float) -> Token | Refusal:
    """The token that was presented, if it is valid for this; else why not. Takes as long for a wrong one."""
    if presented is None:
        return "missing"
    digest = hashlib.sha256(presented).hexdigest().encode()
    found: Token | None = None
    for token in tokens:
        if hmac.compare_digest(digest, token.sha256.encode()):
            found = token
    return "bad" if found is None else permitted(found, scope, now_unix=now_unix)


def permitted(token: Token, scope: Scope, *, now_unix: float) -> Token | Refusal:
    """The token again, if it is valid for this; else why not."""
    if token.is_expired(now_unix=now_unix):
        return "expired"
    return token if scope in token.scopes else "scope"


def bearer(header: bytes | None) -> bytes | None:
    """What an Authorization header presents as a token, or None."""
    scheme, _, presented = (header or b"").partition(b" ")
    return presented.strip() if scheme.lower() == b"bearer" and presented.strip() else None


# The file


@dataclass
class TokenBook:
    """The tokens of a file, read again whenever it has changed. A file that cannot be read lets nobody in."""

    path: Path
    _stamp: tuple[int, int, int] | None = None
    _tokens: tuple[Token, ...] = ()

    def tokens(self) -> tuple[Token, ...]:
        """All tokens as the file has them now; none where it is gone or broken."""
        try:
            found = self.path.stat()
            stamp = (found.st_mtime_ns, found.st_size, found.st_ino)
            if stamp != self._stamp:
                self._tokens = read_tokens(self.path)
                self._stamp = stamp
        except (OSError, UserError):
            self._stamp, self._tokens = None, ()
        return self._tokens


def read_tokens(path: Path) -> tuple[Token, ...]:
    """Every token of a file, expired ones included.

    Raises:
        UserError: there is no such file, it is broken, or others than its owner may write to it.
    """
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode & 0o777
            content = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise UserError(
            f"cannot read the tokens in {path}: {error.strerror}.\n"
            f"Make the file with `archfleet token create NAME --tokens {path}`."
        ) from None
    if mode & _WRITABLE_BY_OTHERS:
        raise UserError(
            f"{path} has mode {mode:04o}: others than its owner may write to it, and so let themselves in.\n"
            f"Use `chmod 600 {path}`."
        )
    try:
        if len(content) > MAX_FILE_BYTES:
            raise ValueError(f"larger than {MAX_FILE_BYTES:,} bytes")
        return _File.model_validate(tomllib.loads(content.decode())).token
    except ValidationError as error:
        wrong = error.errors()[0]
        where = ".".join(map(str, wrong["loc"]))
        raise UserError(f"{path} is no file of tokens: {where}: {wrong['msg']}.\n{_ANEW}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is no file of tokens: {error}.\n{_ANEW}") from None


_ANEW = "Move it away and make tokens anew with `archfleet token create NAME`."


def create_token(
    path: Path,
    name: str,
    *,
    scopes: Sequence[Scope],
    random_bytes: bytes,
    now_unix: float,
    expires_unix: float | None = None,
) -> tuple[str, Token]:
    """Add a token to the file, which is made where it is not there. The token itself is given here and nowhere else.

    Args:
        path: of the file.
        name: whom or what it is for; unlike all others'.
        scopes: what it is for.
        random_bytes: `NUM_RANDOM_BYTES` that nobody can guess.
        now_unix: the time.
        expires_unix: until when it is valid; for ever without it.

    Raises:
        UserError: the name cannot be used, or the file not be read or written.
    """
    assert len(random_bytes) == NUM_RANDOM_BYTES
    if re.fullmatch(_NAME, name) is None:
        raise UserError(f"{name!r:.100} cannot name a token: expected letters, digits and _ . @ -, at most 64.")
    secret = PREFIX + _base62(random_bytes)
    with _changing(path) as before:
        if any(token.name == name for token in before):
            raise UserError(
                f"{path} has a token {name!r} already: choose another name (to replace it: make `{name}-2`, hand it "
                f"out, then `archfleet token revoke {name}`)."
            )
        digest = hashlib.sha256(secret.encode()).hexdigest()
        token = Token(
            id=digest[:8],
            name=name,
            scopes=tuple(scope for scope in SCOPES if scope in scopes),
            sha256=digest,
            created_unix=now_unix,
            expires_unix=expires_unix,
        )
        _write(path, [*before, token])
    return secret, token


def revoke_token(path: Path, which: str) -> Token:
    """Take the token of this id or name out of the file; whoever uses it is out from then on.

    Raises:
        UserError: there is none, or the file cannot be read or written.
    """
    with _changing(path) as before:
        found = [token for token in before if which in (token.id, token.name)]
        if not found:
            names = ", ".join(token.name for token in before) or "none"
            raise UserError(f"{path} has no token {which!r:.100}; it has {names}.")
        _write(path, [token for token in before if token not in found[:1]])
    return found[0]


@contextmanager
def _changing(path: Path) -> Iterator[tuple[Token, ...]]:
    """The tokens of a file, which nobody else changes meanwhile."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        directory = os.open(path.parent, os.O_RDONLY)
    except OSError as error:
        raise UserError(f"cannot keep tokens in {path}: {error.strerror}.\nGive another file with --tokens.") from None
    try:
        flock(directory, LOCK_EX)
        yield read_tokens(path) if path.exists() else ()
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}.\nGive another file with --tokens.") from None
    finally:
        os.close(directory)


def _write(path: Path, tokens: Sequence[Token]) -> None:
    """Replace the file at once: whoever reads it meanwhile sees the old one or the new one."""
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")  # mode 0600
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(_as_toml(tokens))
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        with suppress(OSError):
            Path(name).unlink()
        raise


def _as_toml(tokens: Sequence[Token]) -> str:
    """Every value here is a number or of an alphabet that TOML takes between quotes as it is."""
    lines = ["# Tokens of archfleet: hashes, never the tokens. Written by `archfleet token create` and `revoke`.", ""]
    lines += [f"schema_version = {SCHEMA_VERSION}"]
    for token in tokens:
        scopes = ", ".join(f'"{scope}"' for scope in token.scopes)
        lines += ["", "[[token]]", f'id = "{token.id}"', f'name = "{token.name}"', f"scopes = [{scopes}]"]
        lines += [f'sha256 = "{token.sha256}"', f"created_unix = {token.created_unix!r}"]
        if token.expires_unix is not None:
            lines.append(f"expires_unix = {token.expires_unix!r}")
    return "\n".join(lines) + "\n"


_ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"


def _base62(content: bytes) -> str:
    """Letters and digits alone: a double click takes all of it, and no shell or address bar changes it."""
    number, digits = int.from_bytes(content, "big"), []
    while number:
        number, digit = divmod(number, len(_ALPHABET))
        digits.append(_ALPHABET[digit])
    return "".join(reversed(digits)).rjust(43, _ALPHABET[0])
