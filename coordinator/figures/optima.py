"""x* and r* of every size at which several shapes were run, with their intervals: may they be carried to another?"""

from coordinator.figures.figure import Axis, Figure, Series
from coordinator.figures.formats import short
from coordinator.figures.scales import ShapeAxis
from coordinator.record import RunRecord


def optima(record: RunRecord, axis: ShapeAxis) -> Figure:
    """One row a size."""
    name, title = f"optima-{axis}", f"Does {axis}* agree between sizes?"
    x_axis = Axis(label=f"{axis}*", unit="dimensionless", scale="log")
    by_size = () if record.analysis is None else record.analysis.by_size
    found = [(size, fit.x_opt if axis == "x" else fit.r_opt) for size, fit in by_size]
    rows = [f"N = {short(size)}{'' if one else ', none found'}" for size, one in found]
    y_axis = Axis(label="", low=-0.6, high=max(len(rows), 1) - 0.4, categories=tuple(rows))
    agreement = "nothing was fitted yet." if record.analysis is None else record.analysis.agreement()
    places = [(row, one) for row, (_, one) in enumerate(found) if one is not None]
    if not places:
        reason = agreement if record.analysis is None else f"no {axis}* was found at any size. {agreement}"
        return Figure(name=name, title=title, x=x_axis, y=y_axis, reason=reason)
    level = places[0][1].interval.level
    fitted = Series(
        name=f"fitted optimum and its {level:.0%} bootstrap interval",
        kind="predicted",
        mark="ring",
        colour="law",
        dashed=True,
        x=tuple(one.value for _, one in places),
        y=tuple(float(row) for row, _ in places),
        x_interval=tuple((one.interval.low, one.interval.high) for _, one in places),
        labels=tuple(rows[row] for row, _ in places),
    )
    caption = f"{agreement} A size needs at least six shapes to be fitted alone."
    return Figure(name=name, title=title, caption=caption, x=x_axis, y=y_axis, series=(fitted,))
