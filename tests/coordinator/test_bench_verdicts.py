"""What a campaign shows, in outcomes and sentences; what it refuses to compare."""

import pytest
from scipy import stats

from scaling.throughput_comparison import compare_throughput

A, AGAIN = [100.0, 101.0, 99.0], [100.5, 99.5, 100.0]


def outcomes(record):
    return {c.name: c.outcome for c in record.comparisons}


def sentence(record, name):
    return next(c.sentence for c in record.comparisons if c.name == name)


def test_faster_slower_and_no_difference(make_bench):
    record = make_bench({"a": A, "b": [130, 131, 129], "c": [80, 81, 79], "d": [100, 102, 99], "a'": AGAIN})
    assert outcomes(record) == {
        "a (again)": "no-difference-shown",
        "b": "faster",
        "c": "slower",
        "d": "no-difference-shown",
    }
    assert sentence(record, "b").startswith("b is 30.0 % faster than a at batch 1: 1.300 times its output tokens/s [")
    assert sentence(record, "c").startswith("c is 20.0 % slower than a at batch 1: 0.800 times")
    assert sentence(record, "d").startswith("No difference between d and a is shown at batch 1: 1.003 times")
    assert sentence(record, "a (again)").startswith("Noise floor at batch 1: a, measured twice, gave 1.000 times")


def test_intervals_are_corrected_over_candidates_and_batch_sizes(make_bench):
    rates = {"a": A, "b": [130, 131, 129], "c": [80, 81, 79], "a'": AGAIN}
    record = make_bench(rates, rates)
    assert {c.wall.interval.level for c in record.comparisons} == {1 - 0.05 / 4}
    first, other = (next(r.observation for r in record.rows if r.name == name) for name in "ab")
    expected = compare_throughput([first, other, other, other, other])[0].interval
    assert next(c for c in record.comparisons if c.name == "b").wall.interval == expected


def test_a_difference_within_what_the_first_differs_from_itself_is_not_shown(make_bench):
    apart = [110.0, 110.5, 109.5]  # the same architecture, yet 10 % off: restarts do not show all the noise
    record = make_bench({"a": A, "b": [107.0, 107.5, 106.5], "c": [130, 131, 129], "a'": apart})
    assert outcomes(record) == {"a (again)": "faster", "b": "no-difference-shown", "c": "faster"}
    assert "No difference beyond the noise floor between b and a" in sentence(record, "b")
    assert "differences up to that size are noise here" in sentence(record, "a (again)")


def test_the_noise_floor_counts_in_both_directions(make_bench):
    record = make_bench({"a": A, "b": [93.0, 93.5, 92.5], "a'": [110.0, 110.5, 109.5]})
    assert outcomes(record)["b"] == "no-difference-shown"


@pytest.mark.parametrize(
    ("changes", "flag"), [({"logits_finite": False}, "nan"), ({"num_output_tokens": 7}, "wrong-token-count")]
)
def test_an_invalid_row_is_shown_and_not_compared(make_bench, changes, flag):
    record = make_bench({"a": A, "b": [130, 131, 129], "c": A, "a'": AGAIN}, results={"b": changes})
    assert outcomes(record)["b"] == "not-compared"
    assert outcomes(record)["c"] == "no-difference-shown"
    assert f"an invalid measurement ({flag})" in sentence(record, "b")
    row = next(row for row in record.rows if row.name == "b")
    assert row.observation is not None
    assert flag in row.observation.flags


def test_an_invalid_first_leaves_its_batch_size_without_comparisons(make_bench):
    record = make_bench({"a": A, "b": A, "a'": AGAIN}, results={"a": {"logits_finite": False}})
    assert set(outcomes(record).values()) == {"not-compared"}


def test_two_restarts_are_too_few_to_compare(make_bench):
    record = make_bench({"a": [1, 2], "b": [3, 4], "a'": [1, 2]})
    assert outcomes(record)["b"] == "not-compared"
    assert "too-few-repeats" in sentence(record, "b")


def test_a_failed_row_is_told_and_the_others_compared(make_bench):
    record = make_bench({"a": A, "b": "out-of-memory", "c": [130, 131, 129], "a'": AGAIN})
    assert outcomes(record) == {"a (again)": "no-difference-shown", "b": "not-compared", "c": "faster"}
    assert "it failed (out-of-memory): it broke" in sentence(record, "b")
    assert record.is_finished


def test_a_failed_control_leaves_no_noise_floor_and_says_so(make_bench):
    record = make_bench({"a": A, "b": [130, 131, 129], "a'": "timeout"})
    assert outcomes(record)["b"] == "faster"
    assert sentence(record, "a (again)").startswith(
        "There is no noise floor at batch 1: a (again): it failed (timeout)"
    )


def test_unfinished_rows_are_not_compared(make_bench):
    record = make_bench({"a": A, "b": [130, 131], "a'": AGAIN})
    assert not record.is_finished
    assert "not all of its restarts were run" in sentence(record, "b")


def test_busy_rows_have_their_ratio_in_processor_time_beside(make_bench):
    busy = {"a": A, "b": [50.0, 50.5, 49.5], "a'": AGAIN}
    window = 1000 * 8 / 50.0
    record = make_bench(busy, results={"b": {"cpu_seconds": window / 2}})
    comparison = next(c for c in record.comparisons if c.name == "b")
    assert comparison.outcome == "slower"  # the verdict rests on wall time
    assert comparison.wall.ratio == pytest.approx(0.5, rel=0.01)
    assert comparison.processor.ratio == pytest.approx(1.0, rel=0.01)
    assert "per second of processor time the ratio is 1.00" in comparison.sentence
    assert next(c for c in record.comparisons if c.is_control).processor is None


def test_quiet_rows_have_none(make_bench):
    record = make_bench({"a": A, "b": [130, 131, 129], "a'": AGAIN})
    assert all(comparison.processor is None for comparison in record.comparisons)


def test_false_alarms_stay_below_the_level_over_a_whole_campaign(make_bench):
    source = stats.norm(loc=100, scale=2)
    alarms = 0
    for seed in range(60):
        draws = source.rvs(size=(2, 4, 3), random_state=seed).tolist()
        record = make_bench(*(dict(zip(("a", "b", "c", "a'"), rates, strict=True)) for rates in draws))
        alarms += any(c.outcome in ("faster", "slower") for c in record.comparisons if not c.is_control)
    assert alarms <= 60 * 0.05 + 3 * (60 * 0.05 * 0.95) ** 0.5
