"""Sessions: what a browser has instead of a token. A cookie names a token and an end, sealed by a key of this process.

    cookie = id . end . HMAC-SHA256(key, id . end . hash of the token)

It holds no token, ends after half a day or with its token, whichever is first, and with the process.
"""

import hmac
import re
from collections import OrderedDict, deque
from dataclasses import dataclass, field

from coordinator.tokens import Refusal, Scope, Token, permitted

SESSION_SECONDS = 12 * 3600
NUM_KEY_BYTES = 32
_COOKIE = re.compile(r"\A([0-9a-f]{8})\.([0-9]{1,12})\.([0-9a-f]{64})\Z")


@dataclass(frozen=True)
class Sessions:
    """Gives cookies and reads them. `key` is random, and nobody else's."""

    key: bytes = field(repr=False)

    def cookie(self, token: Token, *, now_unix: float) -> tuple[str, int]:
        """A cookie for who has shown this token, and for how many seconds it is good."""
        end = int(min(now_unix + SESSION_SECONDS, token.expires_unix or float("inf")))
        return f"{token.id}.{end}.{self._seal(token, end)}", max(0, end - int(now_unix))

    def verdict(
        self, tokens: tuple[Token, ...], cookie: str | None, scope: Scope, *, now_unix: float
    ) -> Token | Refusal:
        """The token that the cookie stands for, if it is valid for this; else why not."""
        if cookie is None:
            return "missing"
        if (parts := _COOKIE.search(cookie)) is None:
            return "bad"
        token_id, end, seal = parts[1], int(parts[2]), parts[3]
        token = next((token for token in tokens if token.id == token_id), None)
        if token is None or not hmac.compare_digest(seal.encode(), self._seal(token, end).encode()):
            return "bad"
        return "expired" if now_unix >= end else permitted(token, scope, now_unix=now_unix)

    def _seal(self, token: Token, end: int) -> str:
        return hmac.new(self.key, f"{token.id}.{end}.{token.sha256}".encode(), "sha256").hexdigest()


@dataclass
class Tries:
    """Failed log-ins by address: after `limit` within `seconds` an address has to wait."""

    limit: int = 10
    seconds: float = 60.0
    max_addresses: int = 4096
    """Of more than so many the one that failed longest ago is forgotten."""
    _failed: OrderedDict[str, deque[float]] = field(default_factory=OrderedDict)

    def must_wait(self, address: str, *, now: float) -> bool:
        """Whether this address has failed too often of late."""
        failed = self._failed.get(address, deque())
        return sum(now - when < self.seconds for when in failed) >= self.limit

    def failed(self, address: str, *, now: float) -> None:
        """It has failed once more."""
        self._failed.setdefault(address, deque(maxlen=self.limit)).append(now)
        self._failed.move_to_end(address)
        if len(self._failed) > self.max_addresses:
            self._failed.popitem(last=False)
