"""A host term and scales of the roofline come back from throughputs made with them; too little says why."""

import numpy as np
import pytest

from hwprofiles.catalog import load_profile
from hwprofiles.profile import Calibration, EfficiencyPoint, EfficiencyTable
from scaling.architecture import Architecture
from scaling.observations import Provenance, ServingObservation, ServingRepeat
from scaling.quantity import Measured, NotMeasured, Predicted
from scaling.recipes import ServingRecipe, Workload
from scaling.serving import predict_serving, predict_throughput_array
from scaling.serving_cost import pass_cost
from scaling.throughput_fit import NoThroughputFit, ThroughputFit, fit_throughput, group_runs

PROFILE = load_profile("cpu-generic")
RECIPE = ServingRecipe(engine="transformers", dtype="float32")


def shape(d: int, f: int, groups: int = 2, layers: int = 2, kv_heads: int = 2) -> Architecture:
    return Architecture(
        hidden_size=d,
        intermediate_size=f,
        num_hidden_layers=layers,
        num_attention_heads=kv_heads * groups,
        num_key_value_heads=kv_heads,
        head_dim=16,
        vocab_size=1024,
    )


SHAPES = (
    shape(64, 200, kv_heads=6),
    shape(96, 128, 8),
    shape(128, 64, 4, kv_heads=4),
    shape(48, 400, 1),
    shape(160, 256, 6),
    shape(80, 96, 12),
)
NEW_SHAPE = shape(112, 160, 5)


def observe(
    architecture: Architecture,
    seconds: float,
    *,
    workload: Workload,
    version: str = "5.0",
    flags: tuple[str, ...] = (),
    spread: float = 0.0,
) -> ServingObservation:
    """Three repeats whose pass took `seconds`, in processor time a third of that."""
    num_tokens = workload.batch_size * workload.output_tokens
    rates = [num_tokens / (seconds * factor) for factor in (1 - spread, 1.0, 1 + spread)]
    mean = Measured(value=rates[1], unit="tokens/s", num_samples=3, no_interval_because="made up")
    return ServingObservation(
        assignment_id="bench-0",
        architecture=architecture,
        recipe=RECIPE,
        workload=workload,
        engine_version=version,
        repeats=tuple(
            ServingRepeat(
                output_tokens_per_second=rate,
                seconds=num_tokens / rate,
                num_output_tokens=num_tokens,
                processor_seconds=num_tokens / rate / 3,
            )
            for rate in rates
        ),
        output_tokens_per_second=mean,
        total_tokens_per_second=mean,
        coefficient_of_variation=spread,
        mean_running_sequences=NotMeasured(reason="made up"),
        joules_per_output_token=NotMeasured(reason="made up"),
        flags=flags,
        provenance=Provenance(
            agent="a",
            hostname="h",
            device="a CPU",
            hardware="cpu-generic",
            started_at_unix=0,
            seconds=1,
            versions={},
        ),
    )


def true_seconds(
    architecture, workload, *, step=0.004, sequence=2e-5, layer=0.0, matrices=1.7, attention=1.7, copies=0.0
):
    cost = pass_cost(architecture, 1024, True, PROFILE, RECIPE, workload)
    host = step + sequence * workload.batch_size + layer * architecture.num_hidden_layers
    scaled = matrices * float(cost.matrix_seconds) + attention * float(cost.attention_seconds)
    return workload.output_tokens * host + scaled + copies * float(cost.cache_copy)


def campaign(shapes=SHAPES, batches=(16, 64), *, noise=0.0, seed=0, **truth):
    generator = np.random.default_rng(seed)
    workloads = [Workload(batch_size=batch, input_tokens=64, output_tokens=64) for batch in batches]
    return [
        observe(one, true_seconds(one, load, **truth) * np.exp(noise * generator.standard_normal()), workload=load)
        for load in workloads
        for one in shapes
    ]


def fitted(observations, profile=PROFILE, **settings) -> ThroughputFit:
    fit = fit_throughput(observations, profile, **settings)
    assert isinstance(fit, ThroughputFit), fit
    return fit


def values(fit: ThroughputFit) -> dict[str, float]:
    return {term.term: term.value for term in fit.terms}


def reason(observations, profile=PROFILE, **settings) -> str:
    fit = fit_throughput(observations, profile, **settings)
    assert isinstance(fit, NoThroughputFit), fit
    return fit.reason


def test_the_coefficients_come_back_without_noise():
    found = values(fitted(campaign()))
    assert found["step"] == pytest.approx(0.004, rel=1e-6)
    assert found["step and sequence"] == pytest.approx(2e-5, rel=1e-6)
    assert found.get("roofline", found.get("matrices")) == pytest.approx(1.7, rel=1e-6)


def test_matrices_and_attention_get_a_scale_each_where_the_runs_say_so():
    found = values(fitted(campaign(matrices=1.2, attention=6.0, noise=0.01)))
    assert found["matrices"] == pytest.approx(1.2, rel=0.25)
    assert found["attention"] == pytest.approx(6.0, rel=0.25)


def test_copies_of_the_cache_are_counted_where_an_engine_makes_them():
    found = values(fitted(campaign(copies=3.0, noise=0.01)))
    assert found["cache copy"] == pytest.approx(3.0, rel=0.25)
    assert "cache copy" not in values(fitted(campaign()))


def test_a_host_that_works_by_layer_is_told_from_one_that_does_not():
    deep = [*SHAPES, shape(64, 100, layers=6), shape(96, 64, layers=4), shape(48, 200, layers=8)]
    found = values(fitted(campaign(deep, layer=0.003, noise=0.005)))
    assert found["step and layer"] == pytest.approx(0.003, rel=0.1)
    assert "step and layer" not in values(fitted(campaign(noise=0.005)))  # one layer count tells nothing about it


def test_intervals_hold_a_new_shape_about_as_often_as_they_say():
    load = Workload(batch_size=32, input_tokens=64, output_tokens=64)
    truth = load.batch_size * load.output_tokens / true_seconds(NEW_SHAPE, load)
    noise, held = 0.05, 0
    generator = np.random.default_rng(1)
    for seed in range(60):
        fit = fitted(campaign(noise=noise, seed=seed))
        rate = predict_serving(NEW_SHAPE, PROFILE, RECIPE, load, fit=fit).output_tokens_per_second
        assert isinstance(rate, Predicted)
        assert rate.interval is not None
        held += rate.interval.low <= truth * np.exp(noise * generator.standard_normal()) <= rate.interval.high
    assert held >= 48  # 90 % nominal: 48 of 60 or fewer has a probability of about 2 %


def test_a_fit_beats_the_roofline_alone_on_a_shape_it_never_saw():
    load = Workload(batch_size=32, input_tokens=64, output_tokens=64)
    truth = load.batch_size * load.output_tokens / true_seconds(NEW_SHAPE, load)
    alone, with_fit = (
        predict_serving(NEW_SHAPE, PROFILE, RECIPE, load, fit=fit).output_tokens_per_second
        for fit in (None, fitted(campaign(noise=0.02)))
    )
    assert abs(np.log(with_fit.value / truth)) < 0.05 < abs(np.log(alone.value / truth))


def test_a_prediction_names_the_runs_it_rests_on():
    load = Workload(batch_size=16, input_tokens=64, output_tokens=64)
    prediction = predict_serving(NEW_SHAPE, PROFILE, RECIPE, load, fit=fitted(campaign(noise=0.01)))
    rate = prediction.output_tokens_per_second
    assert rate.basis == "roofline + host term fitted on 12 runs of transformers 5.0"
    assert rate.interval.level == 0.9
    assert prediction.ttft_seconds.no_interval_because


def test_parts_of_a_fitted_prediction_add_up_to_the_whole():
    load = Workload(batch_size=16, input_tokens=64, output_tokens=64)
    prediction = predict_serving(NEW_SHAPE, PROFILE, RECIPE, load, fit=fitted(campaign(noise=0.01)))
    seconds = sum(part.prefill_seconds + part.decode_seconds for part in prediction.operations)
    assert [part.operation for part in prediction.operations] == ["gemm", "attention", "head", "host"]
    assert 16 * 64 / seconds == pytest.approx(prediction.output_tokens_per_second.value)
    assert prediction.ttft_seconds.value + 63 * prediction.itl_seconds.value == pytest.approx(seconds)


def test_many_shapes_at_once_are_predicted_as_one_by_one():
    class Arrays:
        pass

    arrays = Arrays()
    for name in Architecture.model_fields:
        setattr(arrays, name, np.array([getattr(one, name) for one in SHAPES]))
    load, fit = Workload(batch_size=32, input_tokens=64, output_tokens=64), fitted(campaign(noise=0.01))
    rates = predict_throughput_array(
        arrays, vocab_size=1024, tie_word_embeddings=True, profile=PROFILE, recipe=RECIPE, workload=load, fit=fit
    )
    singles = [predict_serving(one, PROFILE, RECIPE, load, fit=fit).output_tokens_per_second.value for one in SHAPES]
    np.testing.assert_allclose(rates, singles)


def test_more_runs_narrow_the_interval_of_the_host_term():
    few = fitted(campaign(SHAPES[:4], noise=0.03))
    many = fitted([*campaign(noise=0.03), *campaign(batches=(32, 96), noise=0.03, seed=1)])
    widths = [fit.terms[0].interval.high - fit.terms[0].interval.low for fit in (few, many)]
    assert widths[1] < widths[0]
    assert many.num_runs == 24


def test_noisy_runs_count_less():
    quiet = campaign()
    wrong = [
        observe(one.architecture, 2 * one.workload.batch_size * 64 / one.output_tokens_per_second.value,
                workload=one.workload, spread=0.5)
        for one in quiet[:2]
    ]  # fmt: skip
    assert values(fitted([*quiet, *wrong]))["step"] == pytest.approx(0.004, rel=0.1)


def test_processor_time_is_another_clock():
    wall, processor = (fitted(campaign(), clock=clock) for clock in ("wall", "processor"))
    assert values(processor)["step"] == pytest.approx(values(wall)["step"] / 3, rel=1e-6)
    assert processor.basis.endswith("processor time")


def test_one_batch_size_gives_no_interval_far_from_it():
    fit = fitted(campaign(batches=(64,), noise=0.01))
    assert "step and sequence" not in values(fit)
    near, far = (
        predict_serving(
            NEW_SHAPE, PROFILE, RECIPE, Workload(batch_size=batch, input_tokens=64, output_tokens=64), fit=fit
        ).output_tokens_per_second
        for batch in (96, 1024)
    )
    assert near.interval is not None
    assert far.interval is None
    assert "1024 is far from those of the fitted runs, 64 to 64" in far.no_interval_because


def test_too_few_shapes_or_runs_say_what_is_needed():
    assert "2 shapes" in reason(campaign(SHAPES[:2]))
    assert "at least 3 shapes and 4 runs" in reason(campaign(SHAPES[:3], batches=(64,)))
    assert "no valid run" in reason([])


def test_engine_versions_are_not_fitted_together():
    load = Workload(batch_size=16, input_tokens=64, output_tokens=64)
    other = observe(SHAPES[0], 1.0, workload=load, version="6.0")
    assert "transformers 5.0" in reason([*campaign(), other])
    assert len(group_runs([*campaign(), other])) == 2


def test_invalid_rows_are_not_fitted():
    load = Workload(batch_size=16, input_tokens=64, output_tokens=64)
    bad = observe(SHAPES[0], 1e-3, workload=load, flags=("nan",))
    assert fitted([*campaign(), bad]).num_runs == 12


def test_runs_without_processor_seconds_are_not_fitted_by_processor_time():
    runs = campaign()
    repeats = tuple(repeat.model_copy(update={"processor_seconds": None}) for repeat in runs[0].repeats)
    assert "no processor seconds" in reason(
        [runs[0].model_copy(update={"repeats": repeats}), *runs[1:]], clock="processor"
    )


def test_a_profile_without_data_at_these_sizes_gives_no_fit():
    point = EfficiencyPoint(size=(1e6, 1e9), efficiency=0.5, spread=0.0, num_samples=1)
    calibration = Calibration(device="x", measured_at="2026-01-01", versions={}, clock="wall", num_repeats=1, seconds=1)
    far = PROFILE.model_copy(
        update={
            "efficiencies": (EfficiencyTable(operation="gemm", dtype="float32", points=(point,)),),
            "calibration": calibration,
        }
    )
    assert "no data" in reason(campaign(), far)


def test_a_fit_is_refused_where_it_does_not_belong():
    fit, load = fitted(campaign()), Workload(batch_size=16, input_tokens=64, output_tokens=64)
    faster = PROFILE.model_copy(update={"memory_bandwidth_bytes_per_second": 1e11})
    with pytest.raises(ValueError, match="another profile"):
        predict_serving(NEW_SHAPE, faster, RECIPE, load, fit=fit)
    with pytest.raises(ValueError, match=r"transformers in float32.*asked for vllm in float32"):
        predict_serving(NEW_SHAPE, PROFILE, ServingRecipe(engine="vllm", dtype="float32"), load, fit=fit)


def test_a_fit_survives_being_written_as_json():
    fit = fitted(campaign(noise=0.01))
    assert ThroughputFit.model_validate_json(fit.model_dump_json()) == fit


def test_the_engines_own_kv_capacity_is_the_effective_batch_of_its_runs():
    """Room for 16 sequences of 128 tokens, where the profile's memory would hold all 64."""
    room = Measured(value=16 * 128 + 5, unit="tokens", num_samples=1, no_interval_because="told by the engine")
    told = [run.model_copy(update={"kv_cache_tokens": room}) for run in campaign(batches=(64,))]
    assert fitted(told).batch_range == (16, 16)
    assert fitted(campaign(batches=(64,))).batch_range == (64, 64)


def test_runs_in_other_numbers_are_never_fitted_together() -> None:
    workload = Workload(batch_size=16, input_tokens=32, output_tokens=32)
    runs = [observe(one, 1.0, workload=workload) for one in SHAPES]
    changes = ({"quantization": "fp8"}, {"kv_cache_dtype": "fp8"}, {"tensor_parallel_size": 2})
    others = [runs[0].model_copy(update={"recipe": RECIPE.model_copy(update=change)}) for change in changes]
    assert len(group_runs([*runs, *others])) == 1 + len(changes)
    refused = fit_throughput([*runs, others[0]], PROFILE)
    assert isinstance(refused, NoThroughputFit)
    assert "weights in fp8" in refused.reason


def test_a_fit_is_not_used_for_other_numbers() -> None:
    workload = Workload(batch_size=16, input_tokens=32, output_tokens=32)
    fit = fit_throughput([observe(one, 1.0 + k / 10, workload=workload) for k, one in enumerate(SHAPES)], PROFILE)
    assert isinstance(fit, ThroughputFit)
    with pytest.raises(ValueError, match="KV cache in fp8"):
        predict_serving(NEW_SHAPE, PROFILE, RECIPE.model_copy(update={"kv_cache_dtype": "fp8"}), workload, fit=fit)
