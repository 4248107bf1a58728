"""`python -m coordinator.health [URL]`: whether a coordinator answers, for health checks of containers.

Exit status 0 and nothing said, or 1 and one sentence. Needs nothing but the standard library, so that asking is cheap.
"""

import sys
from collections.abc import Sequence
from http.client import HTTPException
from urllib.request import ProxyHandler, build_opener

READY_URL = "http://127.0.0.1:9464/readyz"
TIMEOUT_SECONDS = 3.0


def complaint(url: str) -> str | None:
    """What is wrong with the coordinator at `url`, in a sentence; None where it answers that it is well."""
    try:
        with build_opener(ProxyHandler({})).open(url, timeout=TIMEOUT_SECONDS) as answer:
            answer.read(1024)
    except (OSError, HTTPException, ValueError) as error:  # HTTPError, with any status but a good one, is an OSError
        return f"{url}: {error}"
    return None


def main(arguments: Sequence[str]) -> int:
    """The exit status."""
    found = complaint(arguments[0] if arguments else READY_URL)
    if found is not None:
        print(found, file=sys.stderr)
    return 0 if found is None else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
