"""Which commit runs: of a checkout, whatever its branch's file is; of an image, by its environment."""

from pathlib import Path

import pytest

from coordinator.version import COMMIT_VARIABLE, git_commit

COMMIT, OTHER = "a" * 40, "b" * 40


@pytest.fixture
def git(tmp_path: Path) -> Path:
    folder = tmp_path / ".git"
    (folder / "refs" / "heads").mkdir(parents=True)
    return folder


def test_commit_of_a_branch(git: Path) -> None:
    (git / "HEAD").write_text("ref: refs/heads/main\n")
    (git / "refs" / "heads" / "main").write_text(f"{COMMIT}\n")
    assert git_commit(git.parent, {COMMIT_VARIABLE: OTHER}) == COMMIT


def test_commit_of_a_packed_branch(git: Path) -> None:
    (git / "HEAD").write_text("ref: refs/heads/main\n")
    (git / "packed-refs").write_text(f"# pack-refs\n{OTHER} refs/heads/other\n{COMMIT} refs/heads/main\n")
    assert git_commit(git.parent, {}) == COMMIT


def test_commit_that_is_checked_out_alone(git: Path) -> None:
    (git / "HEAD").write_text(f"{COMMIT}\n")
    assert git_commit(git.parent, {}) == COMMIT


def test_without_a_checkout_the_environment_tells(tmp_path: Path) -> None:
    assert git_commit(tmp_path, {COMMIT_VARIABLE: COMMIT}) == COMMIT
    assert git_commit(tmp_path, {}) is None
