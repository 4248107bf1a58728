"""The extra run: a shape that the study could run as it is, priced by the agents' speed, or why there is none."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from coordinator.analysis import Analysis
from coordinator.budget import Speed
from coordinator.dashboard.source import RunSource
from coordinator.extra_run import ExtraRun, extra_run, extra_run_of
from coordinator.record import RunRecord, read_record
from coordinator.shapes import candidates_at
from coordinator.study import StudySpec
from scaling.decisive_run import UNLIKELY
from scaling.quantity import NotMeasured

SPEED = Speed(seconds_per_token=2e-5, seconds_per_token_parameter=1e-10, num_agents=2)


@pytest.fixture(scope="module")
def record(finished_run: Path) -> RunRecord:
    return read_record(finished_run)


def found_in(record: RunRecord, analysis: Analysis | None = None, **changes: object) -> ExtraRun | NotMeasured:
    assert record.recommendation is not None
    answer = record.recommendation.answers[0].model_copy(update=changes)
    analysis = analysis or record.analysis
    assert analysis is not None
    return extra_run(record.study, analysis, answer, record.observations, speed=SPEED, token_scale=1.0, slowdown=2.0)


def noisy(record: RunRecord) -> Analysis:
    """The run's fit, known so badly that one more run may well change what follows from it."""
    assert record.analysis is not None
    fit = record.analysis.law_fit
    middle = fit.bootstrap.mean(axis=0)
    return replace(record.analysis, law_fit=replace(fit, bootstrap=middle + 10 * (fit.bootstrap - middle)))


def test_the_run_is_a_legal_shape_of_the_fit_priced_by_the_agents(record: RunRecord, study: StudySpec) -> None:
    found = found_in(record, noisy(record), measured_verdict="tie")
    assert isinstance(found, ExtraRun)
    candidates = candidates_at(study, study.fit.num_parameters)
    assert candidates.index_of(found.architecture) is not None
    assert found.run.probability_of_change >= UNLIKELY
    each = SPEED.train_seconds(found.run.num_parameters, found.run.num_tokens)
    assert found.seconds.value == pytest.approx(2.0 * each)
    assert found.architecture.label in found.sentence()
    assert "predicted" in found.sentence()


def test_a_law_that_failed_its_check_tells_nothing_of_one_more_run(record: RunRecord) -> None:
    found = found_in(record, measured_verdict="worse")
    assert isinstance(found, NotMeasured)
    assert "failed its check" in found.reason


def test_an_answer_that_the_law_by_itself_would_not_give_has_no_extra_run(record: RunRecord, study: StudySpec) -> None:
    assert record.recommendation is not None
    given = {answer.recommended for answer in record.recommendation.answers}
    candidates = candidates_at(study, study.target.num_parameters)
    other = next(shape for shape in map(candidates.architecture, range(len(candidates))) if shape not in given)
    found = found_in(record, recommended=other, measured_verdict="tie")
    assert isinstance(found, NotMeasured)
    assert "the law by itself would choose" in found.reason


def test_a_chance_below_a_per_cent_is_a_reason_not_a_run(record: RunRecord) -> None:
    assert record.analysis is not None
    fit = record.analysis.law_fit
    middle = fit.bootstrap.mean(axis=0)
    sure = replace(record.analysis, law_fit=replace(fit, bootstrap=middle + 1e-4 * (fit.bootstrap - middle)))
    found = found_in(record, sure, measured_verdict="better")
    assert isinstance(found, NotMeasured)
    assert found.reason.startswith("No single extra run is likely")


def test_without_a_speed_there_is_no_price_and_no_run(record: RunRecord) -> None:
    assert record.recommendation is not None
    assert record.analysis is not None
    answer = record.recommendation.answers[0].model_copy(update={"measured_verdict": "tie"})
    found = extra_run(
        record.study, record.analysis, answer, record.observations, speed=None, token_scale=1.0, slowdown=1.0
    )
    assert isinstance(found, NotMeasured)
    assert "speed" in found.reason


def test_the_report_tells_what_the_recommendation_page_tells(record: RunRecord, run_copy: Path) -> None:
    assert record.recommendation is not None
    found = extra_run_of(record, record.recommendation.answers[0])
    source = RunSource(run_copy)
    (shown,) = json.loads(source.recommendation().body)["answers"]
    source.close()
    told = shown["no_extra_run_because"] or shown["extra_run"]["sentence"]
    assert told == (found.reason if isinstance(found, NotMeasured) else found.sentence())


def test_without_a_fit_no_run_is_told(record: RunRecord) -> None:
    assert record.recommendation is not None
    found = extra_run_of(replace(record, analysis=None), record.recommendation.answers[0])
    assert found == NotMeasured(reason="nothing was fitted")
