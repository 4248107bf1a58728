"""Where the numbers of a run come from: a simulated fleet or engine measures nothing, and no figure may say so."""

from coordinator.figures.figure import Kind
from coordinator.record import RunRecord


def kind_of_losses(record: RunRecord) -> Kind:
    """What finished training runs are."""
    return "simulated" if record.is_simulated else "measured"


def kind_of_rates(record: RunRecord) -> Kind:
    """What finished benchmarks are."""
    return "simulated" if record.is_simulated or record.study.serving.recipe.engine == "fake" else "measured"
