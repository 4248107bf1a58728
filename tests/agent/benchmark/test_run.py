"""The measuring procedure, with the shipped fake engine, with broken engines, and once with the real one."""

import json
import os
import statistics
import textwrap

import pytest
from scipy import stats

from agent.assignment import BenchAssignment
from agent.benchmark.run import mean_with_interval, run_benchmark
from agent.engines.base import Engine, engine_named
from agent.engines.descendants import running_members
from scaling.architecture import Architecture
from scaling.observations import Failure, Progress, ServingObservation
from scaling.quantity import Measured, NotMeasured
from scaling.recipes import ServingRecipe, Workload

# Query width 12 · 16 is not the hidden size, and 64 is no multiple of 12 heads: the general case.
SHAPE = Architecture(
    hidden_size=64,
    intermediate_size=68,
    num_hidden_layers=2,
    num_attention_heads=12,
    num_key_value_heads=6,
    head_dim=16,
    vocab_size=256,
)


def bench(engine="fake", **changes):
    fields = {
        "architecture": SHAPE,
        "recipe": ServingRecipe(engine=engine, dtype="float32"),
        "workload": Workload(batch_size=4, input_tokens=8, output_tokens=8),
        "min_window_seconds": 0.05,
    }
    return BenchAssignment(**(fields | changes))


def broken_engine(tmp_path, *, added=None, **fields):
    """An engine which says what the fake says, but for the given fields, and those added to its result."""
    source = copied_driver("fake", tmp_path)
    patch = textwrap.dedent(f"""
        CHANGES, ADDED = {fields!r}, {added or {}!r}
        told = kit.tell
        def tell(messages, **fields):
            fields |= ADDED if fields["event"] == "result" else {{}}
            told(messages, **(fields | {{key: value for key, value in CHANGES.items() if key in fields}}))
        kit.tell = tell
        """)
    source.write_text(source.read_text().replace('if __name__ == "__main__":', patch + 'if __name__ == "__main__":'))
    return Engine(name="fake", driver=source)


def copied_driver(name, directory):
    """A driver and its kit alone, far from our packages: its interpreter need not have them."""
    original = engine_named(name).driver
    for file in (original, original.with_name("driver_kit.py")):
        (directory / file.name).write_bytes(file.read_bytes())
    return directory / original.name


def last(messages):
    *progress, end = messages
    assert all(isinstance(message, Progress) for message in progress)
    return end


def test_an_observation_summarises_its_repeats(tmp_path):
    observation = last(run_benchmark(bench(), agent="agent-1", work_directory=tmp_path))
    assert isinstance(observation, ServingObservation)
    rates = [repeat.output_tokens_per_second for repeat in observation.repeats]
    assert len(set(rates)) == 3
    assert observation.output_tokens_per_second.value == pytest.approx(statistics.mean(rates))
    assert observation.total_tokens_per_second.value == pytest.approx(2 * statistics.mean(rates))
    assert observation.coefficient_of_variation == pytest.approx(statistics.stdev(rates) / statistics.mean(rates))
    assert observation.provenance.agent == "agent-1"
    assert observation.provenance.hardware == "cpu-generic"


def test_the_fake_engine_is_labelled_fake_everywhere(tmp_path):
    observation = last(run_benchmark(bench(), agent="a", work_directory=tmp_path))
    assert "fake" in observation.flags
    assert observation.provenance.device == "fake"
    assert observation.provenance.versions["engine"] == "fake"
    assert observation.recipe.engine == "fake"
    assert isinstance(observation.mean_running_sequences, NotMeasured)


def test_interval_is_students():
    measured = mean_with_interval([10.0, 11.0, 13.0], "tokens/s")
    expected = stats.ttest_1samp([10.0, 11.0, 13.0], 0).confidence_interval(0.95)
    assert measured.interval is not None
    assert (measured.interval.low, measured.interval.high) == pytest.approx((expected.low, expected.high))


def test_interval_of_what_cannot_be_negative_ends_at_0():
    measured = mean_with_interval([10.0, 900.0, 13.0], "tokens/s")
    assert measured.interval is not None
    assert measured.interval.low == 0.0


@pytest.mark.parametrize(
    ("fields", "flag"),
    [
        ({"num_output_tokens": 7}, "wrong-token-count"),
        ({"logits_finite": False}, "nan"),
        ({"window_seconds": 0.01}, "short"),
        ({"device": {"kind": "gpu", "name": "NVIDIA H200", "memory_bytes": 1}}, "short"),
    ],
)
def test_doubts_become_flags(tmp_path, fields, flag):
    engine = broken_engine(tmp_path, **fields)
    observation = last(run_benchmark(bench(), agent="a", work_directory=tmp_path, engine=engine))
    assert flag in observation.flags


@pytest.mark.parametrize(
    ("added", "flag"),
    [
        ({"num_preemptions": 1}, "preempted"),
        ({"num_prefix_hits": 8}, "prefix-hits"),
        ({"mean_running_sequences": 3.79}, "below-batch"),
    ],
)
def test_what_the_engine_tells_of_its_window_becomes_flags(tmp_path, added, flag):
    engine = broken_engine(tmp_path, added=added)
    observation = last(run_benchmark(bench(), agent="a", work_directory=tmp_path, engine=engine))
    assert flag in observation.flags


def test_what_the_engine_tells_of_its_window_is_in_the_row(tmp_path):
    percentiles = {"p50": 0.5, "p90": 0.9, "p99": 1.5}
    added = {
        "mean_running_sequences": 3.9,
        "num_preemptions": 0,
        "latencies": {"ttft": percentiles},
        "not_measured": {"itl": "no times of tokens"},
    }
    engine = broken_engine(tmp_path, added=added)
    observation = last(run_benchmark(bench(), agent="a", work_directory=tmp_path, engine=engine))
    assert not {"preempted", "prefix-hits", "below-batch"} & set(observation.flags)
    assert observation.mean_running_sequences.value == pytest.approx(3.9)
    assert observation.num_preemptions == 0
    ttft, tpot, itl = observation.latencies
    assert [each.value for each in (ttft.p50, ttft.p90, ttft.p99)] == pytest.approx([0.5, 0.9, 1.5])
    assert tpot.p50 == NotMeasured(reason="the engine does not tell the times of single requests")
    assert itl.p99 == NotMeasured(reason="no times of tokens")
    assert ServingObservation.model_validate_json(observation.model_dump_json()) == observation


def test_few_repeats_are_flagged_and_one_has_no_interval(tmp_path):
    observation = last(run_benchmark(bench(num_repeats=1), agent="a", work_directory=tmp_path))
    assert "too-few-repeats" in observation.flags
    assert observation.output_tokens_per_second.interval is None


def test_an_engine_that_built_another_model_is_a_validation_failure(tmp_path):
    engine = broken_engine(tmp_path, num_total_parameters=5)
    failure = last(run_benchmark(bench(), agent="a", work_directory=tmp_path, engine=engine))
    assert isinstance(failure, Failure)
    assert failure.failure_kind == "validation"
    assert f"built 5 parameters, the architecture has {SHAPE.num_total_parameters}" in failure.message


def test_a_crash_becomes_a_failure_of_the_assignment_with_its_log(tmp_path):
    driver = tmp_path / "driver.py"
    driver.write_text("raise SystemExit('no such device')")
    assignment = bench()
    failure = last(
        run_benchmark(assignment, agent="a", work_directory=tmp_path, engine=Engine(name="fake", driver=driver))
    )
    assert isinstance(failure, Failure)
    assert failure.assignment_id == assignment.id
    assert failure.failure_kind == "engine-start"
    assert failure.detail == "no such device"


def test_closing_the_generator_ends_the_engine(tmp_path):
    driver, pid_file = tmp_path / "driver.py", tmp_path / "pid"
    driver.write_text(
        f"import os, time; open({str(pid_file)!r}, 'w').write(str(os.getpid())); print(flush=True); time.sleep(600)"
    )
    messages = run_benchmark(bench(), agent="a", work_directory=tmp_path, engine=Engine(name="fake", driver=driver))
    assert isinstance(next(messages), Progress)
    pid = int(pid_file.read_text())
    assert running_members(pid) == [pid]
    messages.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_an_engine_that_is_missing_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setenv("ARCHFLEET_VLLM_PYTHON", "/nowhere/python")
    with pytest.raises(ValueError, match=r"/nowhere/python \(named by ARCHFLEET_VLLM_PYTHON\), does not run"):
        next(run_benchmark(bench("vllm"), agent="a", work_directory=tmp_path / "work"))
    assert not (tmp_path / "work").exists()


def test_transformers_measures_a_shape_whose_heads_do_not_divide_its_width(tmp_path):
    pytest.importorskip("transformers")
    (tmp_path / "alone").mkdir()
    lone_engine = Engine(name="transformers", driver=copied_driver("transformers", tmp_path / "alone"))
    assignment = bench("transformers", num_repeats=1)
    observation = last(run_benchmark(assignment, agent="a", work_directory=tmp_path, engine=lone_engine))
    assert isinstance(observation, ServingObservation), observation
    assert "wrong-token-count" not in observation.flags
    assert "nan" not in observation.flags
    assert observation.repeats[0].output_tokens_per_second > 0
    assert observation.repeats[0].seconds >= 0.05
    assert isinstance(observation.mean_running_sequences, Measured)
    assert observation.mean_running_sequences.value == 4
    assert observation.provenance.versions["config_sha256"] == SHAPE.content_hash()
    assert {"torch", "transformers", "python", "archfleet"} <= observation.provenance.versions.keys()
    assert json.loads((tmp_path / "config.json").read_text())["num_attention_heads"] == 12


def test_the_fake_engine_serves_by_the_hardware_that_its_agent_pretends_to_have_and_says_so(
    tmp_path, monkeypatch
) -> None:
    def served_on(hardware):
        monkeypatch.setenv("ARCHFLEET_PRETENDED_HARDWARE", hardware)
        recipe = ServingRecipe(engine="fake", dtype="bfloat16")
        return last(run_benchmark(bench(recipe=recipe), agent="a", work_directory=tmp_path / hardware))

    slow, fast = served_on("a100-80gb"), served_on("h200")
    assert slow.output_tokens_per_second.value < fast.output_tokens_per_second.value
    assert (fast.provenance.hardware, fast.provenance.device) == ("h200", "pretended h200")
    assert "fake" in fast.flags


def test_a_real_engine_pretends_nothing(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("ARCHFLEET_PRETENDED_HARDWARE", "h200")
    real = Engine(name="transformers", driver=copied_driver("fake", tmp_path))
    measured = last(run_benchmark(bench(), agent="a", work_directory=tmp_path / "w", engine=real))
    assert measured.provenance.hardware == "cpu-generic"


def test_an_assignment_that_names_no_hardware_keeps_the_name_it_had_before_it_could() -> None:
    plain = bench()
    assert "hardware" not in json.loads(plain.model_dump_json())
    assert BenchAssignment.model_validate_json(plain.model_dump_json()) == plain
    named = [bench(hardware=hardware) for hardware in ("a100-80gb", "h200")]
    assert len({plain.id, *(one.id for one in named)}) == 3
    assert [BenchAssignment.model_validate_json(one.model_dump_json()) for one in named] == named


def test_what_an_engine_says_comes_with_the_signs_of_life(tmp_path):
    source = copied_driver("fake", tmp_path)
    words = "print('warming up', file=sys.stderr); print('no message'); "
    source.write_text(
        source.read_text().replace('if __name__ == "__main__":', f'if __name__ == "__main__":\n    {words}')
    )
    engine = Engine(name="fake", driver=source)

    told = list(run_benchmark(bench(num_repeats=2), agent="agent-1", work_directory=tmp_path, engine=engine))

    lines = [line for event in told if isinstance(event, Progress) for line in event.lines]
    assert sorted(lines) == ["no message"] * 2 + ["warming up"] * 2
    assert isinstance(told[-1], ServingObservation)
