"""Secrets do not stay in logs, and logs stay readable."""

import pytest

from agent.redaction import REDACTED, Redaction


@pytest.mark.parametrize("name", ["HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "PGPASSWORD", "WANDB_API_KEY", "db_passwd"])
def test_the_value_of_a_secret_variable_is_found_anywhere(name: str) -> None:
    redaction = Redaction({name: "correct horse", "HOME": "/home/ada"})
    assert redaction("tried 'correct horse' in /home/ada") == f"tried '{REDACTED}' in /home/ada"


def test_a_secret_that_holds_another_leaves_nothing_of_itself() -> None:
    redaction = Redaction({"A_TOKEN": "battery-staple", "B_TOKEN": "battery-staple-and-more"})
    assert redaction("battery-staple-and-more") == REDACTED


@pytest.mark.parametrize("variables", [{"RAY_AUTH_TOKEN_PATH": "/run/ray/token"}, {"A_TOKEN": "short"}])
def test_paths_of_secrets_and_short_values_stay(variables: dict[str, str]) -> None:
    text = "in short, /run/ray/token is not there"
    assert Redaction(variables)(text) == text


@pytest.mark.parametrize(
    ("said", "secret"),
    [
        ("Authorization: Bearer abc.def-ghi_jkl", "abc.def-ghi_jkl"),
        ("curl -H 'authorization: basic dXNlcjpwYXNz'", "dXNlcjpwYXNz"),
        ("sent bearer 0123456789abcdef", "0123456789abcdef"),
        ('{"api_key": "9f8e7d6c5b4a"}', "9f8e7d6c5b4a"),
        ("HF_TOKEN=a1b2c3d4e5", "a1b2c3d4e5"),
        ("password = hunter2hunter2", "hunter2hunter2"),
        ("cloning https://ada:lovelace@example.org/x.git", "ada:lovelace"),
        ("GET https://bucket/key?a=1&X-Amz-Signature=0f0f0f0f", "0f0f0f0f"),
        ("using hf_" + "a" * 34, "hf_" + "a" * 34),
        ("using ghp_" + "b" * 36, "ghp_" + "b" * 36),
        ("using AKIA" + "C" * 16, "AKIA" + "C" * 16),
        ("cookie eyJhbGciOiJIUzI1.eyJzdWIiOiIx.SflKxwRJ", "eyJhbGciOiJIUzI1.eyJzdWIiOiIx.SflKxwRJ"),
    ],
)
def test_what_looks_like_a_credential_is_taken_out(said: str, secret: str) -> None:
    assert secret in said
    kept = Redaction({})(said)
    assert secret not in kept
    assert REDACTED in kept


@pytest.mark.parametrize(
    "said",
    [
        "loss 3.412; 15,360 tokens, learning rate 0.0031, 12,400 tokens/s",
        "num_tokens=512000 max_tokens: 2048 joules per token: 0.001234",
        "https://example.org/a:b/c@d",
        "KeyError: 'hidden_size'",
        'File "agent/training/run.py", line 88, in train',
    ],
)
def test_ordinary_words_stay(said: str) -> None:
    assert Redaction({})(said) == said
