"""Figures as values: what is drawn, once; the report paints them as SVG, the dashboard on a canvas."""
