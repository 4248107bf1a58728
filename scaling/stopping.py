"""Deciding: which shape would be recommended now, how sure that is, and whether the study should end."""

from dataclasses import dataclass

import numpy as np

from scaling.belief import Belief

_NUM_DRAWS = 256


@dataclass(frozen=True, kw_only=True)
class StopRule:
    """Stop once P(regret of the recommended shape < `tolerance`) >= `probability`, or the budget is spent.

    `tolerance` is relative: 0.001 is 0.1 % of the loss. `min_runs` keeps a lucky prior from ending a study at once.
    """

    tolerance: float = 0.001
    probability: float = 0.9
    min_runs: int = 8


@dataclass(frozen=True, kw_only=True)
class Decision:
    """The shape that would be recommended now, a position in the target, and what is believed of its regret.

    Regret is its loss over that of the best shape, minus 1. `probability` is that of a regret below `tolerance`.
    """

    index: int
    expected_regret: float
    probability: float
    tolerance: float

    def sentence(self) -> str:
        """The decision in words."""
        return (
            f"P(loss within {self.tolerance:.2%} of the best) = {self.probability:.0%}, "
            f"expected regret {self.expected_regret:.3%}."
        )


def decide(belief: Belief, *, tolerance: float = 0.001, seed: int = 0) -> Decision:
    """The shape with the lowest expected loss at the target, and how sure that choice is."""
    index = int(np.argmin(belief.target_log_loss()))
    draws = belief.target_draws(_NUM_DRAWS, np.random.default_rng(seed))
    regret = np.expm1(draws[:, index] - draws.min(axis=1))
    return Decision(
        index=index,
        expected_regret=float(regret.mean()),
        probability=float((regret < tolerance).mean()),
        tolerance=tolerance,
    )


def reason_to_stop(
    decision: Decision, rule: StopRule, *, num_runs: int, seconds_spent: float, budget_seconds: float
) -> str | None:
    """Why the study should end now, in a sentence; None to go on."""
    if seconds_spent >= budget_seconds:
        return f"The budget of {budget_seconds:.3g} s is spent. {decision.sentence()}"
    if num_runs >= rule.min_runs and decision.probability >= rule.probability:
        return f"The recommendation is stable after {num_runs} runs. {decision.sentence()}"
    return None
