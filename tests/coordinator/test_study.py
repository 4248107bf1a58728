"""Study files: what is shipped runs, and every mistake gets one message with what was given and what to do."""

import tomllib
from pathlib import Path
from typing import Any

import pytest

from coordinator.errors import StudyError
from coordinator.shapes import baseline_at, candidates_at, centre_shape, check_feasible
from coordinator.study import MAX_STUDY_BYTES, changed_keys, parse_study, read_study, shipped_studies


@pytest.fixture
def table() -> dict[str, Any]:
    return tomllib.loads(shipped_studies()["quick"].read_text(encoding="utf-8"))


@pytest.fixture
def study_file(tmp_path: Path):
    def write(text: str | bytes) -> str:
        path = tmp_path / "mine.toml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return str(path)

    return write


def refusal(table: dict[str, Any]) -> str:
    with pytest.raises(StudyError) as caught:
        check_feasible(parse_study(table, source="mine.toml"))
    return str(caught.value)


@pytest.mark.parametrize("name", shipped_studies())
def test_shipped_study_is_valid_feasible_and_named_like_its_file(name: str) -> None:
    study = read_study(name)
    check_feasible(study)
    assert study.name == name


@pytest.mark.parametrize("name", shipped_studies())
def test_shipped_space_has_a_shape_for_every_run_of_the_first_round(name: str) -> None:
    study = read_study(name)
    assert len(candidates_at(study, study.fit.num_parameters)) >= study.fit.num_space_shapes
    assert all(len(candidates_at(study, c.num_parameters)) >= c.num_shapes for c in study.reference)


@pytest.mark.parametrize("name", shipped_studies())
def test_shipped_baseline_can_be_compared_with_its_candidates(name: str) -> None:
    study = read_study(name)
    baseline = baseline_at(study)
    candidates_at(study, study.target.num_parameters).including(baseline)
    assert abs(baseline.num_parameters / study.target.num_parameters - 1) <= study.space.tolerance


def test_centre_lies_within_both_flanks(study) -> None:
    centre = centre_shape(study, study.fit.num_parameters)
    assert study.space.x_min < centre.width_ratio < study.space.x_max
    assert study.space.r_min < centre.mlp_attention_ratio < study.space.r_max


def test_study_read_from_a_path_is_the_shipped_one(study_file) -> None:
    assert read_study(study_file(shipped_studies()["quick"].read_bytes())) == read_study("quick")


def test_study_survives_its_own_json(study) -> None:
    assert type(study).model_validate_json(study.model_dump_json()) == study


def test_misspelt_key_is_named_with_what_was_probably_meant(table) -> None:
    table["fit"]["num_round"] = 3
    message = refusal(table)
    assert "fit.num_round" in message
    assert "num_rounds" in message
    assert "mine.toml" in message


def test_misspelt_key_in_a_list_of_tables_is_named_with_what_was_probably_meant(table) -> None:
    table["reference"][0]["num_shape"] = 2
    assert "Did you mean 'num_shapes'?" in refusal(table)


def test_misspelt_table_is_not_printed_whole(table) -> None:
    table["extras"] = {"words": "x" * 10_000}
    assert len(refusal(table)) < 1_000


def test_wrong_type_is_named_with_what_was_given(table) -> None:
    table["fit"]["num_parameters"] = "many"
    message = refusal(table)
    assert "fit.num_parameters" in message
    assert "'many'" in message


@pytest.mark.parametrize(
    ("given", "told"), [("h200", 'hardware = ["h200"]; given hardware = "h200"'), ({}, "a list in")]
)
def test_a_list_is_asked_for_in_the_words_of_the_file(table, given: object, told: str) -> None:
    table["serving"]["hardware"] = given
    message = refusal(table)
    assert f"serving.hardware: expected a list, {told}" in message or told in message
    assert "tuple" not in message


def test_missing_key_is_named(table) -> None:
    del table["target"]["num_parameters"]
    assert "target.num_parameters: missing" in refusal(table)


def test_all_mistakes_are_told_at_once(table) -> None:
    table["fit"]["num_parameters"] = -1
    table["budget"]["wall_minutes"] = "ten"
    message = refusal(table)
    assert "fit.num_parameters" in message
    assert "budget.wall_minutes" in message


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_budget_must_be_a_finite_number(table, value: float) -> None:
    table["budget"]["wall_minutes"] = value
    assert "budget.wall_minutes" in refusal(table)


def test_batches_must_hold_whole_sequences(table) -> None:
    table["training"]["batch_tokens"] = 500
    message = refusal(table)
    assert "500" in message
    assert "128" in message


def test_negative_order_seed_is_refused_before_anything_is_planned(table) -> None:
    table["training"]["order_seed"] = -1
    assert "training.order_seed" in refusal(table)


def test_a_file_that_is_not_toml_is_refused_with_the_line(study_file) -> None:
    with pytest.raises(StudyError, match=r"mine\.toml is not TOML: .*line 2.*\n.*laptop"):
        read_study(study_file("a = 1\nb = = 2\n"))


def test_bytes_that_are_no_text_are_refused(study_file) -> None:
    with pytest.raises(StudyError, match="is not TOML"):
        read_study(study_file(b"\xff\xfe\x00binary"))


def test_deeply_nested_file_is_refused(study_file) -> None:
    with pytest.raises(StudyError, match="is not TOML"):
        read_study(study_file("a = " + "[" * 100_000))


def test_huge_file_is_refused_unread(study_file) -> None:
    with pytest.raises(StudyError, match=f"at most {MAX_STUDY_BYTES:,}"):
        read_study(study_file("#" * (MAX_STUDY_BYTES + 1)))


def test_unknown_name_lists_the_shipped_studies() -> None:
    with pytest.raises(StudyError, match=r"'nowhere'.*fleet, laptop, quick\)\.\n"):
        read_study("nowhere")


def test_misspelt_name_is_met_with_the_one_that_was_meant() -> None:
    with pytest.raises(StudyError, match="Did you mean 'laptop'"):
        read_study("labtop")


def test_directory_is_no_study(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="neither a file nor a shipped study"):
        read_study(str(tmp_path))


def test_impossible_space_names_the_study_and_the_nearest_miss(table) -> None:
    table["space"]["hidden_multiple_of"] = 4096
    message = refusal(table)
    assert "study 'quick' cannot be run: no legal architecture" in message
    assert "25000" in message
    assert "raise num_parameters" in message


@pytest.mark.parametrize(("low", "high"), [("x_min", "x_max"), ("r_min", "r_max")])
def test_reversed_range_is_one_plain_sentence(table, low: str, high: str) -> None:
    table["space"] |= {low: 2.0, high: 1.0}
    message = refusal(table)
    assert "[2.0, 1.0]" in message
    assert "pydantic" not in message


def test_odd_head_size_is_one_plain_sentence(table) -> None:
    table["space"]["head_dim"] = 15
    message = refusal(table)
    assert "head_dim (15) must be even" in message
    assert "pydantic" not in message


def test_unknown_baseline_lists_the_known_ones(table) -> None:
    table["target"]["baseline"] = "llama-9"
    message = refusal(table)
    assert "llama-9" in message
    assert "llama-3.2-1b" in message


def test_unknown_hardware_lists_the_known_ones(table) -> None:
    table["serving"]["predict_hardware"] = ["h900"]
    message = refusal(table)
    assert "h900" in message
    assert "h200" in message


def test_hardware_to_train_on_is_known(table) -> None:
    table["budget"]["training_hardware"] = ["h900"]
    assert "budget.training_hardware: Value error, unknown hardware 'h900'" in refusal(table)


def test_target_must_be_held_out_of_the_fits_size(table) -> None:
    table["target"]["num_parameters"] = table["fit"]["num_parameters"]
    message = refusal(table)
    assert "fit.num_parameters" in message
    assert "held out" in message


def test_target_must_be_held_out_of_the_reference_sizes(table) -> None:
    table["reference"][1]["num_parameters"] = 1.1 * table["target"]["num_parameters"]
    message = refusal(table)
    assert "reference.1.num_parameters (55000)" in message
    assert "held out" in message


@pytest.mark.parametrize(
    ("hardware", "words"),
    [
        (["a100-80gb", "h100"], r"serving\.hardware: .*unknown hardware 'h100'; expected one of: .*h100-sxm"),
        (["h200", "h200"], r"serving\.hardware: .*names a hardware twice"),
    ],
)
def test_hardware_to_serve_on_is_known_and_named_once(table, hardware: list[str], words: str) -> None:
    table["serving"]["hardware"] = hardware
    with pytest.raises(StudyError, match=words):
        parse_study(table, source="x.toml")


def test_where_serving_is_measured_is_said_in_one_place(table) -> None:
    table["serving"]["hardware"] = ["h200"]
    table["budget"]["bench_hardware"] = "h200"
    with pytest.raises(StudyError, match="both say where serving is measured"):
        parse_study(table, source="x.toml")


def test_keys_in_which_two_studies_differ_are_named_in_full() -> None:
    study = read_study("quick")
    fit = study.fit.model_copy(update={"num_rounds": study.fit.num_rounds + 1})
    budget = study.budget.model_copy(update={"wall_minutes": 99.0})

    assert changed_keys(study, study.model_copy(update={"fit": fit, "budget": budget})) == [
        "budget.wall_minutes",
        "fit.num_rounds",
    ]


def test_more_accelerator_hours_and_other_words_are_the_same_study() -> None:
    study = read_study("quick")
    budget = study.budget.model_copy(update={"accelerator_hours": 99.0})

    assert changed_keys(study, study.model_copy(update={"description": "more", "budget": budget})) == []


def test_words_of_the_step_law_are_read(table) -> None:
    table["training"] |= {"base_learning_rate": "step-law", "batch_tokens": "step-law"}
    training = parse_study(table, source="given").training
    assert (training.base_learning_rate, training.batch_tokens, training.base_fan_ins) == (
        "step-law",
        "step-law",
        "centre",
    )


@pytest.mark.parametrize(
    ("key", "given", "told"),
    [
        ("base_learning_rate", "fast", "training.base_learning_rate: expected a number or \"step-law\"; given 'fast'"),
        ("base_learning_rate", -1, "training.base_learning_rate: Input should be greater than 0; given -1"),
        ("batch_tokens", "big", "training.batch_tokens: expected a whole number or \"step-law\"; given 'big'"),
        ("base_fan_ins", "edge", "training.base_fan_ins: expected a table of fan-ins or \"centre\"; given 'edge'"),
    ],
)
def test_a_number_or_a_word_is_asked_for_in_one_sentence(table, key: str, given: object, told: str) -> None:
    table["training"][key] = given
    message = refusal(table)
    assert told in message
    assert message.count(f"training.{key}") == 1


def test_an_entry_of_the_reference_has_one_ratio_or_several(table) -> None:
    table["reference"] = [{"num_parameters": 25e3, "ratios": [1, 2], "tokens_per_parameter": 4}]
    assert "give either tokens_per_parameter = 10 (one D) or ratios = [5, 10, 20]" in refusal(table)
    table["reference"] = [{"num_parameters": 25e3}]
    assert "give either tokens_per_parameter" in refusal(table)
    table["reference"] = [{"num_parameters": 25e3, "ratios": [1, 2, 1]}]
    assert "name one twice" in refusal(table)


def test_sizes_share_trunks_where_ratios_or_a_warm_up_in_tokens_ask_for_it(table) -> None:
    table["reference"] = [
        {"num_parameters": 25e3, "ratios": [2]},  # beside the fit's ratio 4
        {"num_parameters": 35e3, "ratios": [2]},  # alone
        {"num_parameters": 80e3, "tokens_per_parameter": 2},
        {"num_parameters": 80e3, "tokens_per_parameter": 4},
    ]
    study = parse_study(table, source="given")
    assert study.trunk_sizes == {25e3}
    assert study.ratios_at(25e3) == (2, 4)
    table["training"]["warmup_tokens"] = 5_120
    assert parse_study(table, source="given").trunk_sizes == {25e3, 80e3}


def test_a_warm_up_that_reaches_into_a_decay_is_refused(table) -> None:
    table["training"]["warmup_tokens"] = 50_000
    message = refusal(table)
    assert "begins after 35,000 of its 50,000 tokens: give less, or a warmup_fraction" in message


def test_trunks_need_a_stable_part(table) -> None:
    table["reference"] = [{"num_parameters": 35e3, "ratios": [2, 4]}]
    table["training"]["decay_fraction"] = 1.0
    assert "training.decay_fraction must be below 1" in refusal(table)
