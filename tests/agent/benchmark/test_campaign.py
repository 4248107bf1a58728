"""A campaign's order, its engine processes one by one, and going on with what was stopped."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from agent.assignment import BenchAssignment
from agent.benchmark.campaign import AGAIN, Campaign, Candidate, SlotResult, observe_row, run_campaign, slots_left
from agent.benchmark.run import Restart, run_benchmark
from agent.engines.base import Engine, engine_named
from scaling.architecture import Architecture
from scaling.observations import Failure, Progress, ServingObservation
from scaling.recipes import ServingRecipe, Workload


def shape(hidden_size):
    return Architecture(
        hidden_size=hidden_size,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        vocab_size=128,
    )


def campaign(names="ab", batch_sizes=(2,), num_repeats=3):
    return Campaign(
        candidates=tuple(Candidate(name=name, architecture=shape(8 * (3 + place))) for place, name in enumerate(names)),
        recipe=ServingRecipe(engine="fake", dtype="float32"),
        workloads=tuple(Workload(batch_size=size, input_tokens=4, output_tokens=4) for size in batch_sizes),
        num_repeats=num_repeats,
        min_window_seconds=0.05,
    )


def run(plan, directory, *, finished=(), engine=None, stop_after=None):
    results = list(finished)
    messages = run_campaign(plan, finished, agent="a", work_directory=directory, engine=engine)
    for slot, message in messages:
        if not isinstance(message, Progress):
            results.append(SlotResult(slot=slot, outcome=message))
            if stop_after is not None and len(results) == stop_after:
                messages.close()
                break
    return results


def order_of(plan):
    return "".join(plan.rows[slot.row].name.replace(AGAIN, "'") for slot in plan.order())


def test_restarts_take_turns_and_every_second_round_runs_backwards():
    assert order_of(campaign("ab")) == "aba'" + "a'ba" + "aba'"
    assert order_of(campaign("ab", batch_sizes=(2, 4), num_repeats=2)) == "aba'a'ba" * 2


def test_one_candidate_has_no_control():
    assert order_of(campaign("a")) == "aaa"
    assert campaign("a").num_comparisons == 0


def test_comparisons_are_counted_over_candidates_and_batch_sizes():
    assert campaign("abc", batch_sizes=(1, 2, 4)).num_comparisons == 6


@given(num_candidates=st.integers(2, 6), rounds=st.integers(1, 4), slope=st.floats(-0.1, 0.1))
def test_a_linear_drift_falls_on_all_rows_alike_for_even_repeats(num_candidates, rounds, slope):
    plan = campaign("abcdef"[:num_candidates], num_repeats=2 * rounds)
    times = {}
    for slot in plan.order():
        times.setdefault(slot.row, []).append(1 + slope * slot.number)
    means = [sum(row) / len(row) for row in times.values()]
    assert means == pytest.approx([means[0]] * len(plan.rows))


def test_every_restart_has_its_place_and_its_seed_once():
    plan = campaign("abc", batch_sizes=(1, 2))
    slots = plan.order()
    assert [slot.number for slot in slots] == list(range(4 * 2 * 3))
    assert len({(slot.row, slot.workload, slot.repeat) for slot in slots}) == len(slots)


@pytest.mark.parametrize(("names", "batch_sizes"), [("aa", (2,)), (("a", "a" + AGAIN), (2,)), ("ab", (2, 2))])
def test_ambiguous_rows_are_refused(names, batch_sizes):
    with pytest.raises(ValidationError, match="must differ"):
        campaign(names, batch_sizes)


def test_a_campaign_ends_in_an_observation_of_every_row(tmp_path):
    plan = campaign("ab", batch_sizes=(2, 4))
    results = run(plan, tmp_path)
    assert [result.slot for result in results] == list(plan.order())
    for row in range(3):
        for workload in range(2):
            observation = observe_row(plan, results, row=row, workload=workload)
            assert isinstance(observation, ServingObservation)
            assert observation.architecture == plan.rows[row].architecture
            assert observation.workload == plan.workloads[workload]
            assert len(observation.repeats) == 3
    assert slots_left(plan, results) == ()


def test_restarts_observed_together_say_what_a_benchmark_says(tmp_path):
    plan = campaign("a")  # alone, its seeds are 0, 1, 2: those of a benchmark
    assignment = plan.assignment(0, 0)
    assert isinstance(assignment, BenchAssignment)
    together = observe_row(plan, run(plan, tmp_path / "campaign"), row=0, workload=0)
    *_, at_once = run_benchmark(assignment, agent="a", work_directory=tmp_path / "benchmark")
    assert isinstance(together, ServingObservation)
    assert isinstance(at_once, ServingObservation)
    assert together.model_copy(update={"provenance": at_once.provenance}) == at_once
    assert together.provenance.versions == at_once.provenance.versions


def test_a_row_is_not_observed_while_restarts_are_missing(tmp_path):
    plan = campaign("ab")
    results = run(plan, tmp_path, stop_after=8)
    assert observe_row(plan, results, row=2, workload=0) is None
    assert isinstance(observe_row(plan, results, row=1, workload=0), ServingObservation)


def test_a_stopped_campaign_goes_on_and_ends_as_if_it_had_not_been_stopped(tmp_path):
    plan = campaign("ab")
    begun = run(plan, tmp_path / "first", stop_after=4)
    read_back = [SlotResult.model_validate_json(result.model_dump_json()) for result in begun]
    assert read_back == begun
    resumed = run(plan, tmp_path / "second", finished=read_back)
    unbroken = run(plan, tmp_path / "third")
    assert [r.slot for r in resumed] == [r.slot for r in unbroken]
    assert [r.outcome.result for r in resumed] == [r.outcome.result for r in unbroken]


def test_a_row_that_fails_is_given_up_at_that_batch_size_and_the_others_go_on(tmp_path):
    original = engine_named("fake").driver
    (tmp_path / "driver_kit.py").write_bytes(original.with_name("driver_kit.py").read_bytes())
    source = original.read_text()
    broken = source.replace(
        "    batch_seconds =", "    if config['hidden_size'] == 32: raise SystemExit('it broke')\n    batch_seconds ="
    )
    assert broken != source
    driver = tmp_path / "driver.py"
    driver.write_text(broken)
    plan = campaign("abc", batch_sizes=(1, 2))  # b has hidden size 32
    results = run(plan, tmp_path, engine=Engine(name="fake", driver=driver))
    failed = [result for result in results if isinstance(result.outcome, Failure)]
    assert [(r.slot.row, r.slot.workload, r.slot.repeat) for r in failed] == [(1, 0, 0), (1, 1, 0)]
    assert sum(isinstance(result.outcome, Restart) for result in results) == 3 * 3 * 2
    assert isinstance(observe_row(plan, results, row=1, workload=0), Failure)
    assert isinstance(observe_row(plan, results, row=2, workload=1), ServingObservation)
    assert slots_left(plan, results) == ()
