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
    sizes = [study.fit.num_parameters, study.target.num_parameters, *(c.num_parameters for c in study.reference)]
    serving = study.serving
    words = (
        [] if not is_simulated else ["SIMULATED: fleet or engine are simulations; nothing was measured on a device."]
    )
    words += [
        f"These are proxies of {short(min(sizes))} to {short(max(sizes))} non-embedding parameters. "
        "The answer holds at this size, on this text and with this recipe. Nothing at this size carries over to "
        "models of 1 B parameters: the run shows the method, not an architecture to build large."
        if max(sizes) < 1e8
        else f"The law was fitted at {short(study.fit.num_parameters)} and checked at "
        f"{short(study.target.num_parameters)} non-embedding parameters; beyond the larger it is untested.",
        f"Losses were measured by training, and serving on {', '.join(serving.hardware) or 'this machine'} with "
        f"{serving.recipe.engine}. Numbers for {', '.join(serving.predict_hardware) or 'other hardware'} are roofline "
        "predictions, uncalibrated: no such device was measured.",
    ]
    if serving.recipe.engine == "fake":
        words.append("The engine `fake` is a simulation: its throughputs are invented by a roofline, not measured.")
    if token_scale is not None and token_scale < 1:
        words.append(
            f"Every run used {token_scale:.0%} of the study's tokens, so that the run kept its budget of "
            f"{study.budget.wall_minutes:g} minutes. All shapes were cut alike."
        )
    return [*words, troubles.sentence()]
