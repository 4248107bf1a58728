"""Target runs: what was trained at the target's own size and data, and how it compares with the baseline there.

These runs are held out of every fit: they check what the law proposes, and a shape that they refute is not proposed
again.
"""

from collections.abc import Iterable, Sequence

from coordinator.analysis import Analysis, same_size
from coordinator.choice import target_point
from coordinator.study import StudySpec
from scaling.architecture import Architecture
from scaling.observations import Observation, TrainingObservation
from scaling.pairing import RunNoise, paired_difference
from scaling.quantity import Measured, NotMeasured
from scaling.recommend import Verdict


def target_runs(
    study: StudySpec, observations: Iterable[Observation], *, token_scale: float
) -> list[TrainingObservation]:
    """Runs of the target's size, and of its D to within a batch."""
    N, D = target_point(study, token_scale)
    return [
        run
        for run in observations
        if isinstance(run, TrainingObservation)
        and same_size(run.architecture.num_parameters, N)
        and abs(run.num_tokens - D) <= run.recipe.batch_tokens
    ]


def verdicts(
    analysis: Analysis, baseline: Architecture, runs: Sequence[TrainingObservation]
) -> dict[Architecture, Verdict]:
    """How the measured loss of every shape of these runs compares with the baseline's, where that can be told."""
    shapes = dict.fromkeys(run.architecture for run in runs)
    found = {shape: verdict_of(loss_difference(analysis, shape, baseline, runs)) for shape in shapes}
    return {shape: verdict for shape, verdict in found.items() if verdict is not None}


def loss_difference(
    analysis: Analysis, recommended: Architecture, baseline: Architecture, runs: Sequence[TrainingObservation]
) -> Measured | NotMeasured:
    """Measured loss of one shape minus the baseline's, paired; or why it is not known."""
    ours = [run for run in runs if run.architecture == recommended]
    theirs = [run for run in runs if run.architecture == baseline]
    if recommended == baseline:
        return NotMeasured(reason="the recommended shape is the baseline itself")
    if not ours or not theirs:
        return NotMeasured(reason="one of the two has no finished run at the target")
    return paired_difference(ours, theirs, run_noise(analysis))


def run_noise(analysis: Analysis) -> RunNoise:
    """One run's spread: the fit's residual sd, which holds seed noise and the law's own misfit."""
    return RunNoise(sd=analysis.law_fit.residual_sd, degrees_of_freedom=analysis.law_fit.degrees_of_freedom)


def verdict_of(difference: Measured | NotMeasured) -> Verdict | None:
    """In a word; null where the difference has no interval."""
    if isinstance(difference, NotMeasured) or difference.interval is None:
        return None
    if difference.interval.high < 0:
        return "better"
    return "worse" if difference.interval.low > 0 else "tie"
