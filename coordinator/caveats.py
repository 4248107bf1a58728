"""Caveats: what a reader must know before believing anything that a run says. For the report and the dashboard."""

from dataclasses import dataclass

from coordinator.figures.formats import plural, short
from coordinator.study import StudySpec


@dataclass(frozen=True, kw_only=True)
class Troubles:
    """What went wrong on the way."""

    num_failed_attempts: int
    num_retries: int
    """Leases beyond the first of their trial."""
    num_given_up: int
    """Trials."""
    num_refused: int
    """Late or repeated reports."""

    def sentence(self) -> str:
        """The same in words."""
        return (
            f"{plural(self.num_failed_attempts, 'failed attempt')}, {plural(self.num_retries, 'retry')}, "
            f"{plural(self.num_given_up, 'trial')} given up, "
            f"{plural(self.num_refused, 'late or repeated report')} refused."
        )


def caveats(study: StudySpec, *, token_scale: float | None, is_simulated: bool, troubles: Troubles) -> list[str]:
    """Sentences, the widest first."""
    words = [*_origin(study, is_simulated=is_simulated), _reach(study, is_simulated=is_simulated)]
    absent = [hardware for hardware in study.serving.predict_hardware if hardware not in study.serving.hardware]
    if absent:
        words.append(
            f"Numbers for {', '.join(absent)} are roofline predictions, uncalibrated: no such device was measured."
        )
    if token_scale is not None and token_scale < 1:
        words.append(
            f"Every run used {token_scale:.0%} of the study's tokens, so that the run kept its budget of "
            f"{study.budget.wall_minutes:g} minutes. All shapes were cut alike."
        )
    return [*words, troubles.sentence()]


def _origin(study: StudySpec, *, is_simulated: bool) -> list[str]:
    """Where losses and throughputs come from."""
    serving = study.serving
    if is_simulated:
        return [
            "SIMULATED: nothing was trained and nothing was served. Losses follow an assumed law with drawn noise, "
            "throughputs an assumed roofline, and times assumed speeds: no device told any of them."
        ]
    if serving.recipe.engine == "fake":
        return [
            "SIMULATED throughput: the engine `fake` invents it by a roofline; nothing was served. Losses were "
            "measured by training."
        ]
    where = ", ".join(serving.hardware) or "this machine"
    return [f"Losses were measured by training, and serving on {where} with {serving.recipe.engine}."]


def _reach(study: StudySpec, *, is_simulated: bool) -> str:
    """For which models the answer holds."""
    sizes = [study.fit.num_parameters, study.target.num_parameters, *(c.num_parameters for c in study.reference)]
    if is_simulated:
        return (
            f"The pretended models have {short(min(sizes))} to {short(max(sizes))} non-embedding parameters. The run "
            "shows how such a study goes and what it costs, not an architecture to build."
        )
    if max(sizes) < 1e8:
        return (
            f"These are proxies of {short(min(sizes))} to {short(max(sizes))} non-embedding parameters. "
            "The answer holds at this size, on this text and with this recipe. Nothing at this size carries over to "
            "models of 1 B parameters: the run shows the method, not an architecture to build large."
        )
    return (
        f"The law was fitted at {short(study.fit.num_parameters)} and checked at "
        f"{short(study.target.num_parameters)} non-embedding parameters; beyond the larger it is untested."
    )
