"""The names under which other modules know how numbers read: `coordinator.figures` has them."""

from coordinator.figures.formats import NATS, between, count, duration, moment, plural, short
from coordinator.figures.formats import digits as figure
from coordinator.figures.shown import Shown, shown

__all__ = ["NATS", "Shown", "between", "count", "duration", "figure", "moment", "plural", "short", "shown"]
