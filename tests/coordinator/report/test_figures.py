"""What the figures draw of a run, and what they say where they cannot."""

from dataclasses import replace

from coordinator.recommendation import target_point
from coordinator.record import RunRecord
from coordinator.report.run_figures import MAX_AGENTS_DRAWN, predictions_by, roofline, timeline
from coordinator.report.shape_figures import deciding_cell, loss_against, optima_by_size
from coordinator.report.target_figures import held_out, paretos, reference


def test_loss_figures_name_the_optimum_with_its_interval(finished: RunRecord) -> None:
    assert finished.analysis is not None
    for axis, optimum in (("x", finished.analysis.law_fit.x_opt), ("r", finished.analysis.law_fit.r_opt)):
        block = loss_against(finished, axis)
        assert optimum is not None
        assert f"{axis}* = {optimum.value:.3g}, 90% interval {optimum.interval.low:.3g}" in block.caption


def test_loss_figures_show_every_run_of_the_deciding_cell_once(finished: RunRecord) -> None:
    assert finished.analysis is not None
    cell = deciding_cell(finished.analysis.law_fit)
    assert cell is not None
    assert loss_against(finished, "x").caption.startswith(
        f"{cell.num_points} finished runs of {cell.num_shapes} shapes"
    )


def test_runs_are_measured_and_the_curve_is_predicted(finished: RunRecord) -> None:
    kinds = {entry.glyph: entry.kind for entry in loss_against(finished, "r").legend}
    assert kinds["dot"] == "measured"
    assert kinds["dashes"] == "predicted"


def test_the_held_out_error_of_the_recommendation_is_stated(finished: RunRecord) -> None:
    assert finished.recommendation is not None
    error = finished.recommendation.heldout_error_ratio
    assert error is not None
    assert f"= {error:.2%} over 3 shapes" in held_out(finished).caption


def test_panda_surefire_and_baseline_are_named_on_the_front(finished: RunRecord) -> None:
    named = " ".join(entry.text for entry in paretos(finished)[0].legend)
    for name in ("Panda", "Surefire", "baseline", "recommended"):
        assert name in named


def test_the_reference_law_predicts_the_target_with_an_interval(finished: RunRecord) -> None:
    assert finished.analysis is not None
    level = finished.analysis.reference.predict(*target_point(finished.study, 0.8))
    assert level.kind == "predicted"
    assert level.interval is not None
    assert (
        f"predicted {level.value:.4f} [{level.interval.low:.4f}, {level.interval.high:.4f}]"
        in reference(finished).caption
    )


def test_agreement_between_sizes_is_the_analysis_own_sentence(finished: RunRecord) -> None:
    assert finished.analysis is not None
    assert finished.analysis.agreement() in optima_by_size(finished).caption


def test_one_size_alone_is_a_sentence(finished: RunRecord) -> None:
    assert finished.analysis is not None
    alone = replace(finished, analysis=replace(finished.analysis, by_size=()))
    block = optima_by_size(alone)
    assert block.svg is None
    assert "was not tested" in block.reason


def test_roofline_holds_every_device_and_batch_of_both_shapes(finished: RunRecord) -> None:
    serving = finished.study.serving
    rows = predictions_by(finished)
    assert set(rows) == set(serving.predict_hardware)
    for by_role in rows.values():
        assert set(by_role) == {"recommended", "baseline"}
        for row in by_role.values():
            assert [one.workload.batch_size for one in row] == list(serving.predict_batches)
    assert "uncalibrated" in roofline(finished).title


def test_a_recommended_shape_that_is_the_baseline_is_predicted_once(finished: RunRecord) -> None:
    answer = finished.recommendation
    assert answer is not None
    itself = answer.answers[0].model_copy(update={"recommended": answer.baseline})
    same = replace(finished, recommendation=answer.model_copy(update={"answers": (itself,)}))
    assert all(set(by_role) == {"baseline"} for by_role in predictions_by(same).values())
    assert "the recommended shape itself" in roofline(same).legend[0].text


def test_the_timeline_counts_failed_attempts_as_attempts(finished: RunRecord) -> None:
    block = timeline(finished)
    assert block.caption.startswith(f"{len(finished.trials) + 2} attempts on 2 agents")
    assert "failed attempt" in [entry.text for entry in block.legend]


def test_the_timeline_of_a_large_fleet_draws_the_busiest_and_says_so(finished: RunRecord) -> None:
    trials = tuple(trial._replace(agent=f"agent-{number % 50:02d}") for number, trial in enumerate(finished.trials * 2))
    block = timeline(replace(finished, trials=trials, observations=()))
    assert f"Drawn are the {MAX_AGENTS_DRAWN} busiest agents." in block.caption
    assert block.svg is not None
    assert block.svg.count(">agent-") == MAX_AGENTS_DRAWN
