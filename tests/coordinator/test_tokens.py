"""Tokens: made once, kept as hashes, refused when wrong, late, or for something else."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from coordinator.cli import main
from coordinator.errors import UserError
from coordinator.tokens import (
    MAX_FILE_BYTES,
    NUM_RANDOM_BYTES,
    Token,
    TokenBook,
    bearer,
    create_token,
    read_tokens,
    revoke_token,
    verdict,
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "config" / "tokens.toml"


def make(path: Path, name: str, *scopes: str, seed: int = 1, expires_unix: float | None = None) -> tuple[str, Token]:
    return create_token(
        path,
        name,
        scopes=scopes or ("read",),
        random_bytes=bytes([seed]) * NUM_RANDOM_BYTES,
        now_unix=100.0,
        expires_unix=expires_unix,
    )


def test_a_token_opens_what_it_is_for_and_nothing_else(path: Path) -> None:
    secret, token = make(path, "ada", "read")
    tokens = read_tokens(path)
    assert verdict(tokens, secret.encode(), "read", now_unix=200) == token
    assert verdict(tokens, secret.encode(), "metrics", now_unix=200) == "scope"
    assert verdict(tokens, None, "read", now_unix=200) == "missing"
    assert verdict(tokens, secret[:-1].encode(), "read", now_unix=200) == "bad"
    assert verdict((), secret.encode(), "read", now_unix=200) == "bad"


def test_a_token_ends_at_its_time(path: Path) -> None:
    secret, token = make(path, "ada", expires_unix=1000.0)
    assert verdict(read_tokens(path), secret.encode(), "read", now_unix=999.9) == token
    assert verdict(read_tokens(path), secret.encode(), "read", now_unix=1000.0) == "expired"


@given(presented=st.binary(max_size=300))
def test_no_bytes_at_all_raise_or_open(presented: bytes) -> None:
    token = Token(id="0" * 8, name="a", scopes=("read",), sha256="0" * 64, created_unix=0)
    assert verdict((token,), presented, "read", now_unix=0) == "bad"


def test_two_tokens_are_valid_during_rotation_and_revoking_ends_one(path: Path) -> None:
    old, first = make(path, "ada", seed=1)
    new, second = make(path, "ada-2", seed=2)
    book = TokenBook(path)
    assert [verdict(book.tokens(), secret.encode(), "read", now_unix=0) for secret in (old, new)] == [first, second]
    assert revoke_token(path, "ada") == first
    assert verdict(book.tokens(), old.encode(), "read", now_unix=0) == "bad"
    assert verdict(book.tokens(), new.encode(), "read", now_unix=0) == second
    assert revoke_token(path, second.id) == second
    assert book.tokens() == ()


def test_the_file_holds_no_token_and_only_its_owner_may_read_it(path: Path) -> None:
    secret, _ = make(path, "ada")
    assert secret.startswith("aft_")
    assert secret.removeprefix("aft_") not in path.read_text()
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o077 == 0
    assert [child.name for child in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize(("mode", "is_taken"), [(0o600, True), (0o440, True), (0o620, False), (0o666, False)])
def test_a_file_that_others_may_write_to_is_refused(path: Path, mode: int, is_taken: bool) -> None:
    make(path, "ada")
    path.chmod(mode)
    assert len(TokenBook(path).tokens()) == is_taken
    if not is_taken:
        with pytest.raises(UserError, match=rf"has mode {mode:04o}.*\n.*chmod 600"):
            read_tokens(path)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "schema_version = 2",
        "schema_version = 1\n[[token]]\nid = 'x'",
        "schema_version = 1\nadmin = true",
        "= nothing",
        "\xff",
        "a = " + "[" * 100_000,
        "#" * (MAX_FILE_BYTES + 1),
    ],
)
def test_a_broken_file_is_told_and_lets_nobody_in(tmp_path: Path, content: str) -> None:
    path = tmp_path / "tokens.toml"
    path.write_bytes(content.encode("latin-1"))
    path.chmod(0o600)
    with pytest.raises(UserError, match=r"is no file of tokens: (?s:.*)archfleet token create"):
        read_tokens(path)
    assert TokenBook(path).tokens() == ()


def test_a_file_that_goes_away_lets_nobody_in_and_one_that_comes_back_does(path: Path) -> None:
    make(path, "ada")
    book, content = TokenBook(path), path.read_bytes()
    assert len(book.tokens()) == 1
    path.unlink()
    assert book.tokens() == ()
    path.write_bytes(content)
    path.chmod(0o600)
    assert len(book.tokens()) == 1


@pytest.mark.parametrize("name", ["", "a b", "a\n", "../x", "x" * 65, '"', "é"])
def test_a_name_is_plain(path: Path, name: str) -> None:
    with pytest.raises(UserError, match="cannot name a token"):
        make(path, name)
    assert not path.exists()


def test_a_name_is_given_once(path: Path) -> None:
    make(path, "ada", seed=1)
    with pytest.raises(UserError, match="has a token 'ada' already"):
        make(path, "ada", seed=2)


def test_revoking_what_is_not_there_names_what_is(path: Path) -> None:
    make(path, "ada")
    with pytest.raises(UserError, match="no token 'bob'; it has ada"):
        revoke_token(path, "bob")


def test_a_file_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot keep tokens in .*\n.*--tokens"):
        make(tmp_path / "file" / "tokens.toml", "ada")


@pytest.mark.parametrize(
    ("header", "presented"),
    [
        (b"Bearer abc", b"abc"),
        (b"bearer  abc ", b"abc"),
        (b"Bearer \xff\xfe", b"\xff\xfe"),
        (b"Basic abc", None),
        (b"Bearer", None),
        (b"Bearer ", None),
        (b"", None),
        (None, None),
    ],
)
def test_a_bearer_header_presents_what_follows_the_word(header: bytes | None, presented: bytes | None) -> None:
    assert bearer(header) == presented


def test_the_command_makes_lists_and_revokes(path: Path) -> None:
    def call(*words: str) -> str:
        result = CliRunner().invoke(main, ["token", *words, "--tokens", str(path)], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return result.stdout

    secret = call("create", "ada", "--scope", "metrics", "--scope", "read", "--days", "2").strip()
    made = json.loads(call("create", "prometheus", "--scope", "metrics", "--json"))
    assert isinstance(verdict(read_tokens(path), secret.encode(), "read", now_unix=0), Token)
    assert isinstance(verdict(read_tokens(path), made["token"].encode(), "metrics", now_unix=0), Token)
    listed = call("list") + call("list", "--json")
    assert "prometheus" in listed
    assert secret not in listed
    assert made["token"] not in listed
    (first, second) = json.loads(call("list", "--json"))
    assert first["expires_unix"] - first["created_unix"] == 2 * 86_400
    assert (second["name"], second["expires_unix"], second["is_expired"]) == ("prometheus", None, False)
    call("revoke", "ada")
    assert [token.name for token in read_tokens(path)] == ["prometheus"]
