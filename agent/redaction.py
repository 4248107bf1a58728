"""Redaction: what is kept of a log never holds a secret that the agent can know of.

Two kinds are found: the values of this process's own environment variables whose names say that they are secret, and
what looks like a credential wherever it stands. To take out too much costs a word of a log, to leave one in a password.
"""

import os
import re
from collections.abc import Mapping

REDACTED = "[redacted]"
MIN_SECRET_CHARACTERS = 8
"""A shorter value of a variable would be found in innocent words."""

_SECRET_NAME = re.compile(r"(TOKEN|SECRET|PASSWORD|PASSWD|PASSPHRASE|KEY|CREDENTIALS?|COOKIE)$", re.IGNORECASE)
_CREDENTIALS = (
    # A name that says so, and its value: token=..., "api_key": "...", Authorization: Bearer ...
    (
        re.compile(
            r"""((?:token|secret|passw(?:or)?d|passphrase|api[_-]?key|access[_-]?key|secret[_-]?key|authorization)"""
            r"""["']?\s*[=:]\s*["']?(?:(?:bearer|basic)\s+)?)(?![\d.,e+-]+(?:\s|$))[^\s"'&,;]{6,}""",
            re.IGNORECASE,
        ),
        rf"\1{REDACTED}",
    ),
    (re.compile(r"\b(bearer\s+)[\w.~+/=-]{8,}", re.IGNORECASE), rf"\1{REDACTED}"),
    # user:password@ of an address, and the signature of a signed one.
    (re.compile(r"(://)[^/\s@]*:[^/\s@]+@"), rf"\1{REDACTED}@"),
    (re.compile(r"([?&](?:x-amz-signature|x-amz-credential|signature|sig)=)[^\s&]+", re.IGNORECASE), rf"\1{REDACTED}"),
    # The shapes of well-known keys: Hugging Face, GitHub, OpenAI and likes, AWS, JSON web tokens.
    (
        re.compile(
            r"\b(?:hf_[A-Za-z0-9]{16,}|gh[pousr]_[A-Za-z0-9]{16,}|sk-[A-Za-z0-9_-]{16,}|(?:AKIA|ASIA)[0-9A-Z]{16}"
            r"|eyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]*)"
        ),
        REDACTED,
    ),
)


class Redaction:
    """Takes secrets out of texts; those of `environment` are looked up once."""

    def __init__(self, environment: Mapping[str, str] | None = None) -> None:
        known = os.environ if environment is None else environment
        values = {
            value for name, value in known.items() if _SECRET_NAME.search(name) and len(value) >= MIN_SECRET_CHARACTERS
        }
        self._values = sorted(values, key=len, reverse=True)
        """Longest first: one may hold another."""

    def __call__(self, text: str) -> str:
        """The text with every secret replaced by a mark."""
        for value in self._values:
            text = text.replace(value, REDACTED)
        for pattern, mark in _CREDENTIALS:
            text = pattern.sub(mark, text)
        return text
