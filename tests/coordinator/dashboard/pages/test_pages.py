"""Pages: what a store tells comes out on its page, with units, origin and the reasons of what is missing."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from coordinator.analysis import Analysis
from coordinator.budget import Speed
from coordinator.dashboard.pages.hardware import HardwarePage, read_hardware
from coordinator.dashboard.pages.overview import Overview, read_overview
from coordinator.dashboard.pages.recommendation import RecommendationPage, read_recommendation
from coordinator.dashboard.pages.study import StudyPage, read_study
from coordinator.dashboard.pages.trial import TrialPage, read_trial
from coordinator.dashboard.pages.trials import TrialList, TrialWords, read_trials
from coordinator.dashboard.reads import PageReader
from coordinator.figures.catalogue import entries
from coordinator.forecast import seconds_left
from coordinator.record import outline_of, read_record
from coordinator.store import Store
from coordinator.study import StudySpec
from scaling.observations import ServingObservation, TrainingObservation

NOW = 1_700_000_500.0


class Pages:
    """Every page of a run."""

    def __init__(self, run: Path) -> None:
        self.store = PageReader.open(run)
        self.words = TrialWords()

    def overview(self, *, is_held: bool = False) -> Overview:
        return read_overview(self.store, now_unix=NOW, is_held=is_held)

    def study(self) -> StudyPage:
        return read_study(self.store, analysis=self._analysis(), figures=entries(self._outline()), now_unix=NOW)

    def trials(self, **asked: object) -> TrialList:
        return read_trials(self.store, self.words, now_unix=NOW, **asked)  # type: ignore[arg-type]

    def trial(self, trial_id: str) -> TrialPage:
        found = read_trial(self.store, trial_id, now_unix=NOW)
        assert found is not None
        return found

    def hardware(self) -> HardwarePage:
        figures = entries(self._outline())
        return read_hardware(self.store, analysis=self._analysis(), figures=figures, is_held=False, now_unix=NOW)

    def recommendation(self) -> RecommendationPage:
        return read_recommendation(self.store, analysis=self._analysis(), record=self._outline(), now_unix=NOW)

    def _analysis(self) -> Analysis | None:
        fit = self.store.last_fit()
        return None if fit is None else Analysis.from_json(fit.record)

    def _outline(self):
        return outline_of(self.store, observations=tuple(one.observation for one in self.store.benchmarks(newest=100)))


@pytest.fixture
def pages(finished_run: Path) -> Iterator[Pages]:
    opened = Pages(finished_run)
    yield opened
    opened.store.close()


@pytest.fixture
def live(store: Store, driver) -> Iterator[Pages]:
    """A run whose first stage has begun: a trial ended, one failed, one runs, the others wait."""
    store.set_meta("loop_unix", repr(NOW))
    driver.plan()
    first, second, third, *_ = driver.queued()
    driver.run_trial(first)
    driver.fail_trial(second, "out-of-memory", final=False)
    driver.lease(third)
    opened = Pages(store.run_directory)
    yield opened
    opened.store.close()


# Overview


def test_overview_of_a_finished_run_counts_what_the_store_holds(pages: Pages, finished_run: Path) -> None:
    overview, record = pages.overview(), read_record(finished_run)
    assert (overview.run, overview.study, overview.state) == (finished_run.name, "quick", "finished")
    assert overview.trials.succeeded == overview.trials.total == overview.num_expected == len(record.trials)
    assert sum(one.total for one in overview.by_phase) == overview.trials.total
    assert overview.budget.spent_seconds == pytest.approx(sum(trial.spent_seconds for trial in record.trials))
    assert [(one.stage, one.num_trials) for one in overview.stages] == [
        (plan.stage, len(plan.trials)) for plan in record.plans
    ]
    assert overview.seq == overview.newest[0].seq == pages.store.last_seq()
    assert [one.seq for one in overview.newest] == sorted((one.seq for one in overview.newest), reverse=True)
    assert overview.recommendation[0] == record.recommendation.answers[0].sentence(simulated=False)


def test_a_run_that_nobody_holds_was_killed_or_runs_by_its_lock(live: Pages) -> None:
    assert live.overview(is_held=True).state == "running"
    killed = live.overview(is_held=False)
    assert (killed.state, killed.level) == ("killed", "problem")
    assert "archfleet run" in killed.health[0].what_to_do


def test_overview_of_a_live_run_tells_who_does_what_and_what_failed(live: Pages) -> None:
    overview = live.overview(is_held=True)
    assert (overview.trials.succeeded, overview.trials.running) == (1, 1)
    (agent,) = overview.agents
    assert (agent.trial_id, agent.done_fraction) == (live.store.running()[0][0], 0.0)
    assert agent.trial.startswith("train")
    assert [(one.kind, one.num) for one in overview.failures] == [("out-of-memory", 1)]
    assert overview.law is None
    assert overview.recommendation == ()


def test_time_left_is_the_forecast_of_all_trials_and_called_predicted(live: Pages, study: StudySpec) -> None:
    left = live.overview(is_held=True).budget.seconds_left
    speed = Speed.model_validate_json(live.store.meta("speed") or "")
    assert left.kind == "predicted"
    assert left.value == pytest.approx(seconds_left(study, live.store.trials(), speed, 1.0))
    assert "no interval" in left.note


def test_a_simulated_fleet_is_called_simulated_on_every_page(run_copy: Path) -> None:
    with Store.resume(run_copy) as store:
        store.set_meta("simulated", "1")
    simulated = Pages(run_copy)
    with simulated.store:
        trial_id = simulated.trials(phase="train").rows[0].trial_id
        seen = [simulated.overview(), simulated.study(), simulated.hardware(), simulated.recommendation()]
        seen += [simulated.trials(), simulated.trial(trial_id)]
        assert all(page.simulated for page in seen)
        assert not any('"kind":"measured"' in page.model_dump_json(exclude={"figures"}) for page in seen)


# Trials


def test_trials_come_in_pages_that_join_without_gap_or_repeat(pages: Pages) -> None:
    everything = pages.trials(limit=2000)
    assert everything.next_after is None
    assert [row.trial_id for row in everything.rows] == [row.trial_id for row in pages.store.trials()]
    seen, after = [], 0
    while after is not None:
        some = pages.trials(after=after, limit=4)
        assert len(some.rows) <= 4
        seen += some.rows
        after = some.next_after
    assert tuple(seen) == everything.rows


def test_a_line_has_the_measured_numbers_of_its_trial(pages: Pages, finished_run: Path) -> None:
    record = read_record(finished_run)
    for row in pages.trials(limit=2000).rows:
        if row.phase == "train":
            assert row.loss == record.training[row.trial_id].loss
            assert row.num_tokens == record.training[row.trial_id].num_tokens
        else:
            rate = record.serving[row.trial_id].output_tokens_per_second
            assert (row.rate, row.loss, row.num_tokens) == (rate.value, None, None)
            assert (row.rate_low, row.rate_high) == (rate.interval.low, rate.interval.high)


def test_trials_are_filtered_by_state_phase_and_words(pages: Pages, live: Pages) -> None:
    benches = pages.trials(phase="bench", limit=2000)
    assert {row.phase for row in benches.rows} == {"bench"}
    assert len(benches.rows) == benches.num_matching < benches.num_trials
    shape = benches.rows[0].shape
    found = pages.trials(query=f"SERVING {shape.upper()}")
    assert {(row.shape, row.role) for row in found.rows} == {(shape, "serving")}
    assert found.num_matching == len(found.rows)
    assert pages.trials(query="nothing-has-this-name").rows == ()
    assert [row.state for row in live.trials(state="running").rows] == ["running"]


def test_what_was_not_measured_is_null_and_how_it_failed_is_told(live: Pages) -> None:
    rows = live.trials().rows
    assert [row.loss is None for row in rows[:3]] == [False, True, True]
    assert [row.failure_kind for row in rows[:3]] == [None, "out-of-memory", None]


# One trial


def test_a_training_run_has_its_raw_numbers_and_figures(pages: Pages, finished_run: Path) -> None:
    run = next(iter(read_record(finished_run).training.values()))
    page = pages.trial(run.assignment_id)
    assert page.training is not None
    assert page.training.window_losses == run.window_losses
    assert (page.training.loss.kind, page.training.loss.value) == ("measured", run.loss)
    assert page.training.loss.low < run.loss < page.training.loss.high  # type: ignore[operator]
    assert {figure.name for figure in page.figures} == {"attempts", "curve", "windows"}
    assert page.config["hidden_size"] == page.shape.hidden_size == run.architecture.hidden_size
    assert (page.serving, page.no_numbers_because) == (None, "")


def test_the_windows_of_a_figure_are_all_of_them(pages: Pages, finished_run: Path) -> None:
    run = next(one for one in read_record(finished_run).observations if isinstance(one, TrainingObservation))
    windows = next(figure for figure in pages.trial(run.assignment_id).figures if figure.name == "windows")
    assert sum(windows.series[0].y[:-1]) == len(run.window_losses)


def test_a_benchmark_has_every_repeat(pages: Pages, finished_run: Path) -> None:
    run = next(one for one in read_record(finished_run).observations if isinstance(one, ServingObservation))
    page = pages.trial(run.assignment_id)
    assert page.serving is not None
    assert [one.output_tokens_per_second for one in page.serving.repeats] == [
        one.output_tokens_per_second for one in run.repeats
    ]
    assert page.serving.joules_per_output_token.value is None
    assert page.serving.joules_per_output_token.note == "synthetic"
    repeats = next(figure for figure in page.figures if figure.name == "repeats")
    assert len(repeats.series[0].x) == len(run.repeats)


def test_a_failed_attempt_keeps_its_log_and_the_trial_says_why_it_has_no_numbers(live: Pages) -> None:
    failed = live.trials().rows[1]
    page = live.trial(failed.trial_id)
    assert [(one.kind, one.message) for one in page.failures] == [("out-of-memory", "it broke")]
    assert [(one.outcome, one.failure_kind) for one in page.attempts] == [("retried", "out-of-memory")]
    assert page.no_numbers_because == "It waits again after 1 attempt: no result yet."
    running = live.trial(live.store.running()[0][0])
    assert (running.attempts[0].ended_unix, running.attempts[0].spent_seconds) == (None, None)


def test_neighbours_lead_from_the_first_trial_to_the_last(pages: Pages) -> None:
    ids = [row.trial_id for row in pages.trials(limit=2000).rows]
    first, last = pages.trial(ids[0]), pages.trial(ids[-1])
    assert (first.previous_id, first.next_id) == (None, ids[1])
    assert (last.previous_id, last.next_id) == (ids[-2], None)


def test_there_is_no_page_of_an_unknown_trial(pages: Pages) -> None:
    assert read_trial(pages.store, "train-0", now_unix=NOW) is None


# Study


def test_study_tells_the_law_and_how_far_to_trust_it(pages: Pages, finished_run: Path) -> None:
    law, analysis = pages.study().law, read_record(finished_run).analysis
    assert law is not None
    assert analysis is not None
    fit = analysis.law_fit
    assert (law.condition_number, law.num_runs) == (fit.condition_number, fit.num_points)
    assert law.x_opt.kind == "predicted" or law.x_opt.note
    assert law.residual_sd.unit == "nats/token"
    assert len(law.coefficients) == 6
    assert law.messages == tuple(analysis.messages())
    assert {one.page for one in pages.study().figures} == {"study"}


def test_held_out_errors_are_predicted_over_measured(pages: Pages) -> None:
    for row in pages.study().held_out:
        assert row.measured.kind == "measured"
        if row.error is not None:
            assert row.error == pytest.approx(row.predicted.value / row.measured.value - 1)  # type: ignore[operator]


def test_a_study_without_a_fit_says_so(live: Pages) -> None:
    page = live.study()
    assert page.law is None
    assert page.no_law_because
    assert live.recommendation().answers == ()
    assert live.recommendation().no_answer_because.startswith("The run is running, 1 of ")
    assert live.hardware().training_noise.value is None


# Hardware


def test_hardware_has_its_sheet_its_noise_and_its_benchmarks(pages: Pages, finished_run: Path) -> None:
    (line,) = pages.hardware().hardware
    record = read_record(finished_run)
    assert line.hardware == "cpu-generic"
    assert all(fact.source for fact in line.profile)
    assert [fact.value for fact in line.profile if fact.name == "Power"] == [None]
    assert line.num_benchmarks == line.num_valid_benchmarks == len(record.serving)
    assert {one.rate.kind for one in line.benchmarks} == {"measured"}


def test_canaries_are_told_by_agent_with_the_newest_and_the_farthest(store: Store, driver) -> None:
    for number, deviation in enumerate((None, 0.2, -0.01)):
        store.add_canary(
            agent="agent-0", hardware="cpu-generic", kind="gemm", rate=1.0, deviation=deviation, now_unix=NOW + number
        )
    with PageReader.open(store.run_directory) as reader:
        page = read_hardware(reader, analysis=None, figures=(), is_held=True, now_unix=NOW)
    (summary,) = page.hardware[0].canary_summaries
    assert (summary.num, summary.newest_deviation, summary.largest_deviation, summary.level) == (3, -0.01, 0.2, "ok")


# Recommendation


def test_an_answer_has_its_config_its_reasons_and_the_runs_it_rests_on(pages: Pages, finished_run: Path) -> None:
    page, record = pages.recommendation(), read_record(finished_run)
    (answer,), told = page.answers, record.recommendation
    assert told is not None
    build = told.answers[0].recommended if answer.stands else told.baseline
    assert answer.config == build.to_hf_config()
    assert answer.why
    known = {trial.trial_id for trial in record.trials}
    assert {one.trial_id for one in answer.evidence} <= known
    assert {one.what for one in answer.evidence} == {"held-out loss", "throughput"}
    assert answer.throughput.recommended.value == told.answers[0].recommended_throughput.value
    assert {"recommended", "baseline"} <= {one.name for one in page.configs}
    assert (answer.extra_run is None) == bool(answer.no_extra_run_because)


def test_a_proposal_that_failed_its_check_is_not_what_to_build(run_copy: Path) -> None:
    with Store.resume(run_copy) as store:
        told = store.recommendation()
        assert told is not None
        told["answers"][0]["measured_verdict"] = "worse"
        store.add_recommendation(told, now_unix=NOW)
    refuted = Pages(run_copy)
    with refuted.store:
        (answer,) = refuted.recommendation().answers
    assert not answer.stands
    assert answer.headline.startswith("Keep the baseline")
    assert answer.config["hidden_size"] == answer.baseline.hidden_size
    assert "failed its check" in answer.verdicts[0]
    assert answer.extra_run is None
    assert "failed its check" in answer.no_extra_run_because


def test_every_page_is_json_and_comes_back_as_itself(pages: Pages) -> None:
    for page in (pages.overview(), pages.study(), pages.trials(), pages.hardware(), pages.recommendation()):
        assert type(page).model_validate_json(page.model_dump_json()) == page
        json.loads(page.model_dump_json())
