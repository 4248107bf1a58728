"""A dashboard that asks for a token: a stranger is led to the sign-in, then to the page they wanted, and out again."""

from pathlib import Path

import pytest

from coordinator.dashboard.access import Access
from coordinator.tokens import NUM_RANDOM_BYTES, TokenBook, create_token, revoke_token


@pytest.fixture
def guarded(serve, run_copy: Path, tmp_path: Path):
    """Where a guarded dashboard is, a token for it, and the file that holds what is known of the token."""
    path = tmp_path / "tokens.toml"
    secret, _ = create_token(path, "ada", scopes=("read",), random_bytes=b"\x07" * NUM_RANDOM_BYTES, now_unix=0)
    with serve(run_copy, port=0, access=Access(book=TokenBook(path))) as listening:
        yield listening.url, secret, path


def sign_in(page, token: str) -> None:
    page.get_by_label("Token").fill(token)
    page.get_by_role("button", name="Sign in").click()


def test_signing_in_leads_to_the_wanted_page_and_signing_out_ends_it(visit, guarded):
    url, secret, _ = guarded
    opened = visit(url)
    page = opened.page
    page.goto(f"{url}trials")
    page.get_by_role("heading", name="archfleet").wait_for()
    sign_in(page, "not a token")
    page.get_by_role("alert").filter(has_text="not accepted").wait_for()
    sign_in(page, secret)
    page.wait_for_selector(".page-trials h1")
    assert page.url == f"{url}trials"
    page.wait_for_selector("#live[data-state=live], #live[data-state=ended]")  # the stream has the cookie too
    assert secret not in page.evaluate("document.cookie + JSON.stringify(localStorage)")
    assert opened.everything() == []
    page.get_by_role("button", name="Sign out").click()
    page.get_by_role("heading", name="archfleet").wait_for()
    page.goto(url)
    page.get_by_label("Token").wait_for()


def test_a_revoked_token_leads_an_open_page_back_to_the_sign_in(visit, guarded):
    url, secret, path = guarded
    opened = visit(url)
    page = opened.page
    page.goto(url)
    sign_in(page, secret)
    page.wait_for_selector(".page-overview h1")
    revoke_token(path, "ada")
    page.get_by_role("link", name="Hardware").click()
    page.get_by_label("Token").wait_for()
    assert page.url == f"{url}login?next=%2Fhardware"
