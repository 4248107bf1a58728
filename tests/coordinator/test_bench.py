"""bench.json: written after every restart, gone on with, and refused where it cannot be."""

import json
import shutil
from pathlib import Path

import pytest
from rich.console import Console

from agent.benchmark.machine import Machine
from agent.engines.base import Engine, engine_named
from coordinator import bench
from coordinator.bench import (
    WORK_NAME,
    BenchOptions,
    bench_table,
    closing_words,
    plan_campaign,
    run_bench,
    title,
    with_defaults,
    workload_words,
    write_page,
)
from coordinator.bench_record import FILE_NAME, make_record, read_record, write_record
from coordinator.errors import UserError
from scaling.observations import ServingObservation

CPU = Machine(available_bytes=8e9, place="a CPU", on_gpu=False)
CONSOLE = Console(stderr=True, quiet=True)
SHAPES = ("llama-3.2-1b", "qwen3-0.6b")


def fake(**options):
    return plan_campaign(SHAPES, BenchOptions(**({"engine": "fake", "batches": "1"} | options)))


def fake_that(condition: str, action: str, directory: Path) -> Engine:
    """The fake engine, but where a condition on its request holds, it does something else first."""
    original = engine_named("fake").driver
    source = original.read_text()
    changed = source.replace("    batch_seconds =", f"    if {condition}: {action}\n    batch_seconds =")
    assert changed != source
    driver = directory / "driver.py"
    driver.write_text(changed)
    shutil.copy(original.with_name("driver_kit.py"), directory)
    return Engine(name="fake", driver=driver)


def table_text(record) -> str:
    console = Console(width=200, record=True, quiet=True)
    with console.capture() as capture:
        console.quiet = False
        console.print(bench_table(record))
    return capture.get()


def test_a_record_read_back_is_the_record(tmp_path, make_bench):
    record = make_bench({"a": [1, 2, 3], "b": "timeout", "a'": [1, 2, 3]}, {"a": [2, 3, 4], "b": [2], "a'": [3, 4, 5]})
    write_record(tmp_path, record)
    assert read_record(tmp_path) == record
    assert read_record(tmp_path / FILE_NAME) == record


def test_the_file_tells_its_rows_to_those_who_read_it_without_archfleet(tmp_path, make_bench):
    record = make_bench({"a": [1, 2, 3], "b": "timeout", "a'": [1, 2, 3]})
    content = json.loads(write_record(tmp_path, record).read_text())
    assert content["schema_version"] == 2
    assert [row["name"] for row in content["rows"]] == ["a", "b", "a (again)"]
    assert [row["is_control"] for row in content["rows"]] == [False, False, True]
    assert [result["kind"] for result in content["results"]] == ["serving", "failure", "serving"]
    assert ServingObservation.model_validate(content["results"][0]) == record.rows[0].result
    assert content["order"][1] == "batch 1, repeat 2: a (again), b, a"
    assert content["fingerprint"]["device_name"] == "synthetic"
    assert content["fingerprint"]["campaign_sha256"] == record.campaign.content_hash()


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"schema_version": 2}', '{"schema_version": 2, "campaign": {}}', "\x00"]
)
def test_a_damaged_file_is_refused_and_kept(tmp_path, text):
    file = tmp_path / FILE_NAME
    file.write_text(text)
    with pytest.raises(UserError, match=r"bench\.json"):
        run_bench(fake(), tmp_path, console=CONSOLE)
    assert file.read_text() == text


def test_a_file_of_another_schema_is_refused(tmp_path):
    (tmp_path / FILE_NAME).write_text('{"schema_version": 99}')
    with pytest.raises(UserError, match="schema version 99"):
        read_record(tmp_path)


def test_another_campaign_in_the_directory_is_refused_by_what_differs(tmp_path):
    run_bench(fake(), tmp_path, console=CONSOLE)
    with pytest.raises(UserError, match="another campaign: num_repeats differ"):
        run_bench(fake(repeats=4), tmp_path, console=CONSOLE)


def test_a_directory_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "out").write_text("")
    with pytest.raises(UserError, match="cannot write to"):
        run_bench(fake(), tmp_path / "out", console=CONSOLE)


def test_a_campaign_that_was_killed_goes_on_and_runs_nothing_twice(tmp_path, monkeypatch):
    writes = []

    def write_and_die(directory, record):
        path = write_record(directory, record)
        writes.append(len(record.restarts))
        if len(record.restarts) == 4:
            raise KeyboardInterrupt
        return path

    monkeypatch.setattr(bench, "write_record", write_and_die)
    with pytest.raises(KeyboardInterrupt):
        run_bench(fake(), tmp_path / "stopped", console=CONSOLE)
    assert writes == [0, 1, 2, 3, 4]
    monkeypatch.undo()
    stopped = read_record(tmp_path / "stopped")
    assert len(stopped.restarts) == 4
    resumed = run_bench(fake(), tmp_path / "stopped", console=CONSOLE)
    unbroken = run_bench(fake(), tmp_path / "unbroken", console=CONSOLE)
    assert resumed.restarts[:4] == stopped.restarts
    assert resumed.is_finished
    assert resumed.comparisons == unbroken.comparisons
    again = run_bench(fake(), tmp_path / "stopped", console=CONSOLE)
    assert again == resumed


def test_what_a_kill_left_of_the_engines_work_is_removed(tmp_path):
    left = tmp_path / WORK_NAME / "0"
    left.mkdir(parents=True)
    (left / "engine-0.log").write_text("half a line")
    run_bench(fake(), tmp_path, console=CONSOLE)
    assert [path.name for path in tmp_path.iterdir()] == [FILE_NAME]


def test_going_on_with_other_versions_is_refused(tmp_path):
    campaign = fake()
    other = fake_that("request['seed'] == 2", "tell_as('2')", tmp_path)
    driver = other.driver.read_text()
    driver = driver.replace('versions={"fake": "1"}', 'versions={"fake": "2" if request["seed"] == 2 else "1"}')
    other.driver.write_text(driver.replace("    if request['seed'] == 2: tell_as('2')\n", ""))
    with pytest.raises(UserError, match="fake 1 -> 2"):
        run_bench(campaign, tmp_path, console=CONSOLE, engine=other)
    assert len(read_record(tmp_path).restarts) == 2


def test_cache_blocks_that_follow_the_shape_are_no_other_version(tmp_path):
    other = fake_that("request['seed'] == 2", "tell_as('2')", tmp_path)
    driver = other.driver.read_text()
    driver = driver.replace('versions={"fake": "1"}', 'versions={"fake": "1", "kv_blocks": str(request["seed"])}')
    other.driver.write_text(driver.replace("    if request['seed'] == 2: tell_as('2')\n", ""))
    assert run_bench(fake(), tmp_path, console=CONSOLE, engine=other).is_finished


def test_a_row_that_breaks_leaves_the_others_and_is_told(tmp_path):
    engine = fake_that("config['hidden_size'] == 1024", "raise SystemExit('no such kernel')", tmp_path)
    record = run_bench(fake(), tmp_path / "out", console=CONSOLE, engine=engine)
    assert record.is_finished
    assert "failed: engine-start" in table_text(record)
    assert "no such kernel" in closing_words(record)
    assert "no such kernel" in write_page(record, tmp_path / "out").read_text()


def test_a_campaign_of_one_has_a_table_and_nothing_to_compare(tmp_path):
    campaign = plan_campaign(SHAPES[:1], BenchOptions(engine="fake", batches="1,2"))
    record = run_bench(campaign, tmp_path, console=CONSOLE)
    assert record.comparisons == ()
    assert closing_words(record) == ""
    assert "1 (first)" in table_text(record)


def test_the_table_has_a_column_for_processor_time_only_where_it_was_needed(make_bench):
    quiet = {"a": [100, 101, 99], "b": [130, 131, 129], "a'": [100, 101, 99]}
    assert "in processor time" not in table_text(make_bench(quiet))
    busy = table_text(make_bench(quiet, results={"b": {"cpu_seconds": 1.0}}))
    assert "in processor time" in busy
    assert "busy-cpu" in busy


def test_a_config_given_twice_is_measured_under_two_names():
    campaign = plan_campaign(("qwen3-0.6b",) * 3, BenchOptions(engine="fake"))
    assert [candidate.name for candidate in campaign.candidates] == ["qwen3-0.6b", "qwen3-0.6b #2", "qwen3-0.6b #3"]


def test_batch_sizes_double_and_repeat_none():
    campaign = plan_campaign(SHAPES, BenchOptions(engine="fake", batches="1..8"))
    assert [workload.batch_size for workload in campaign.workloads] == [1, 2, 4, 8]
    campaign = plan_campaign(SHAPES, BenchOptions(engine="fake", batches="4,2,4"))
    assert [workload.batch_size for workload in campaign.workloads] == [4, 2]


def test_heads_that_do_not_divide_are_refused(tmp_path):
    config = tmp_path / "config.json"
    fields = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "vocab_size": 64, "head_dim": 16}
    config.write_text(json.dumps(fields | {"model_type": "llama", "num_attention_heads": 6, "num_key_value_heads": 4}))
    with pytest.raises(UserError, match=r"num_attention_heads \(6\) must be a multiple of num_key_value_heads \(4\)"):
        plan_campaign((str(config),), BenchOptions())


def on_gpus(number: int) -> Machine:
    return Machine(available_bytes=140e9, place="a GPU", on_gpu=True, num_devices=number)


def test_what_is_not_given_follows_the_device_and_is_said():
    gpu = with_defaults(BenchOptions(engine="vllm", batches="64"), on_gpus(1))
    assert (gpu.batches, gpu.input_tokens, gpu.output_tokens, gpu.window_seconds) == ("64", 1024, 1024, 60)
    assert with_defaults(BenchOptions(), on_gpus(1)).batches == "128..4096"
    assert with_defaults(BenchOptions(engine="fake"), on_gpus(1)) == with_defaults(BenchOptions(engine="fake"), CPU)
    options = BenchOptions(engine="fake")
    words = workload_words(plan_campaign(SHAPES, options, machine=CPU), options)
    assert words.startswith("workload: 32 input / 32 output tokens, batch 16, float32; 9 engine starts of at least 2 s")
    assert "on a GPU --input-tokens 1024 --output-tokens 1024 --batch 128..4096 --dtype bfloat16" in words
    asked = with_defaults(options, CPU)
    assert "What was not given" not in workload_words(plan_campaign(SHAPES, asked, machine=CPU), asked)


def test_a_gpus_default_workload_that_its_memory_cannot_hold_is_refused_with_a_way_out():
    with pytest.raises(UserError, match=r"1b does not fit .*batch 4096 of 2048 tokens, bfloat16.*smaller"):
        plan_campaign(SHAPES, BenchOptions(), machine=on_gpus(1))


def test_recipes_are_recorded_and_shown(tmp_path, make_bench):
    record = make_bench({"a": [1, 2, 3]})
    recipe = {"quantization": "fp8", "kv_cache_dtype": "fp8_e5m2", "tensor_parallel_size": 2}
    changed = record.campaign.recipe.model_copy(update=recipe)
    record = make_record(record.campaign.model_copy(update={"recipe": changed}), ())
    words = "weights in fp8, KV cache in fp8_e5m2, 2 devices in tensor parallel"
    assert words in title(record)
    assert words in write_page(record, tmp_path).read_text()
    content = json.loads(write_record(tmp_path, record).read_text())
    assert recipe.items() <= content["campaign"]["recipe"].items()
    assert read_record(tmp_path) == record


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"tensor_parallel_size": 4}, "wants as many GPUs, but 2 of a GPU visible"),
        ({"quantization": "gptq"}, "belongs to a quantised checkpoint"),
        ({"quantization": "F P"}, "quantization 'F P': String should match"),
    ],
)
def test_recipes_that_cannot_be_followed_are_refused_before_the_engine_is_looked_for(options, expected, monkeypatch):
    monkeypatch.setenv("ARCHFLEET_VLLM_PYTHON", "/nowhere/python")
    with pytest.raises(UserError, match=expected):
        plan_campaign(SHAPES, BenchOptions(engine="vllm", **options), machine=on_gpus(2))


def test_an_engine_that_is_not_installed_is_told_before_anything_starts(monkeypatch):
    monkeypatch.setenv("ARCHFLEET_VLLM_PYTHON", "/nowhere/python")
    with pytest.raises(UserError, match="the interpreter of engine 'vllm', /nowhere/python"):
        plan_campaign(SHAPES, BenchOptions(engine="vllm"), machine=on_gpus(1))


@pytest.mark.slow
def test_transformers_measures_a_campaign_for_real(tmp_path):
    pytest.importorskip("transformers")
    for name, width in (("narrow", 32), ("wide", 256)):
        fields = {"hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": 2, "vocab_size": 128}
        heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "model_type": "mistral"}
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(fields | heads))
    configs = tuple(str(tmp_path / name) for name in ("narrow", "wide"))
    options = BenchOptions(batches="4", input_tokens=8, output_tokens=8, window_seconds=0.1, repeats=2)
    record = run_bench(plan_campaign(configs, options), tmp_path / "out", console=CONSOLE)
    assert record.is_finished
    assert len(record.observations()) == 3
    for observation in record.observations():
        assert observation.output_tokens_per_second.value > 0
        assert not {"nan", "wrong-token-count", "fake"} & set(observation.flags)
    assert record.fingerprint["transformers"] == record.observations()[0].engine_version


def test_too_few_repeats_to_compare_are_said_before_anything_is_measured():
    words = {
        repeats: workload_words(plan_campaign(SHAPES, options, machine=on_gpus(0)), options)
        for repeats in (2, 3)
        for options in [BenchOptions(engine="fake", repeats=repeats)]
    }
    assert words[2].startswith("NOTHING WILL BE COMPARED: 2 restarts")
    assert "--repeats 3" in words[2]
    assert words[3].startswith("workload: ")


def test_whoever_may_read_the_page_may_read_the_figures(tmp_path, make_bench):
    record = make_bench({"a": [1, 2, 3]})
    modes = {path.stat().st_mode & 0o777 for path in (write_record(tmp_path, record), write_page(record, tmp_path))}
    assert len(modes) == 1
