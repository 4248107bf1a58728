"""The reference law of a study: L_opt beyond the trained cells with honest intervals, or the reason for none."""

import numpy as np

from scaling.fit import ShapePoints, fit_conditional
from scaling.law import ChinchillaLaw, ConditionalLaw
from scaling.quantity import NotMeasured, Predicted
from scaling.reference import fit_reference

LAPTOP = ConditionalLaw(a=(1.01287, 0.053859, 0.015603), b=(0.980084, 0.017632, 0.020070))
X9 = np.array([0.203, 0.203, 0.203, 0.203, 0.203, 0.101, 0.152, 0.305, 0.402])
R9 = np.array([4.8, 3.06, 1.71, 1.03, 0.6, 3.06, 2.63, 1.69, 3.13])
TRUTH = ChinchillaLaw(E=1.6, A=25.0, B=500.0, alpha=0.3, beta=0.45)
SIDE_CELLS = [(5e4, 2.5e5), (5e4, 5e5), (5e4, 1e6), (1e5, 5e5)]


def study_points(seed: int, side_cells: list[tuple[float, float]] = SIDE_CELLS) -> ShapePoints:
    """Two runs of nine shapes at 100 k and 1 M tokens, and the centre shape in other cells."""
    x = np.concatenate([X9, X9, np.full(len(side_cells), 0.203)])
    r = np.concatenate([R9, R9, np.full(len(side_cells), 1.71)])
    N = np.concatenate([np.full(18, 1e5), [cell[0] for cell in side_cells]])
    D = np.concatenate([np.full(18, 1e6), [cell[1] for cell in side_cells]])
    noise = 0.011 * np.random.default_rng(seed).standard_normal(len(x))
    loss = LAPTOP.predict(x, r, TRUTH.predict(N, D)) + noise
    return ShapePoints(x=x, r=r, num_parameters=N, num_tokens=D, loss=loss)


def test_the_held_out_size_is_predicted_within_its_interval() -> None:
    hits, trials = 0, 20
    for seed in range(trials):
        reference = fit_reference(fit_conditional(study_points(seed), seed=seed, num_bootstrap=100), seed=seed)
        predicted = reference.predict(2e5, 2e6)
        assert isinstance(predicted, Predicted)
        assert predicted.interval is not None
        hits += predicted.interval.low <= float(TRUTH.predict(2e5, 2e6)) <= predicted.interval.high
    assert hits >= 15


def test_extrapolation_is_less_sure_than_a_fitted_cell() -> None:
    fit = fit_conditional(study_points(0))
    reference = fit_reference(fit)
    widths = []
    for N, D in ((1e5, 1e6), (2e5, 2e6), (8e5, 8e6)):
        predicted = fit.predict_loss(0.25, 1.2, N, D, reference=reference)
        widths.append(float(predicted.high[0] - predicted.low[0]))
    assert widths == sorted(widths)


def test_cells_on_one_line_predict_on_that_line_alone() -> None:
    reference = fit_reference(fit_conditional(study_points(0, [(5e4, 5e5), (2.5e4, 2.5e5)])))
    assert reference.reach == "line"
    on_line = reference.predict(2e5, 2e6)
    assert isinstance(on_line, Predicted)
    off_line = reference.predict(2e5, 8e6)
    assert isinstance(off_line, NotMeasured)
    assert "off that line" in off_line.reason


def test_one_cell_predicts_nothing_elsewhere_and_says_so() -> None:
    reference = fit_reference(fit_conditional(study_points(0, [])))
    assert reference.reach == "cell"
    assert isinstance(reference.predict(1e5, 1e6), Predicted)
    refused = reference.predict(2e5, 2e6)
    assert isinstance(refused, NotMeasured)
    assert "one cell was fitted" in refused.reason
