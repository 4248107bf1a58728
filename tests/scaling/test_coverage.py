"""Nominal 90 % intervals hold the truth about 90 % of the time, and the command's table says how often."""

import io

import pytest
from rich.console import Console

from coordinator.simulate_coverage import coverage_table, run_coverage


def test_intervals_of_150_studies_hold_the_truth_about_as_often_as_they_say() -> None:
    result = run_coverage(150, seed=1, num_bootstrap=100)
    for row in result["quantities"]:
        # The 86 % to 94 % asked for, widened by two binomial standard errors of 150 studies (2.4 % each).
        assert 0.81 <= row["coverage"] <= 0.98, row
        assert row["without"] <= 0.02


@pytest.mark.slow
def test_intervals_of_1000_studies_cover_between_86_and_94_per_cent() -> None:
    for row in run_coverage(1000, seed=0)["quantities"]:
        assert 0.86 <= row["coverage"] <= 0.94, row


def test_a_study_that_cannot_tell_says_so_instead_of_covering() -> None:
    result = run_coverage(20, seed=0, noise_sd=0.1, num_bootstrap=50)
    x, r = result["quantities"][2:]
    assert r["without"] > 0.2
    assert x["without"] > 0.0


def test_the_same_seed_counts_the_same() -> None:
    assert run_coverage(5, seed=3, num_bootstrap=50) == run_coverage(5, seed=3, num_bootstrap=50)
    assert run_coverage(5, seed=3, num_bootstrap=50) != run_coverage(5, seed=4, num_bootstrap=50)


def test_the_table_names_level_runs_and_every_quantity() -> None:
    result = run_coverage(5, num_bootstrap=50)
    out = io.StringIO()
    Console(file=out, width=160).print(coverage_table(result))
    for expected in ("90%", "16 runs", "loss at the best shape", "x*", "r*", "±"):
        assert expected in out.getvalue()


def test_unknown_truths_and_no_studies_are_refused() -> None:
    with pytest.raises(ValueError, match="choose one of drift, interaction, paper"):
        run_coverage(5, truth="papr")
    with pytest.raises(ValueError, match="at least 1"):
        run_coverage(0)
