// How a series looks. Measured is filled and solid, predicted is hollow or dashed, whatever the figure asks for.

import { s } from "./dom.js";

const COLOURS = [
  ...["ink", "soft", "hair", "law", "band", "recommended", "baseline", "worse", "front", "bad"],
  ...["scale-1", "scale-2", "scale-3", "scale-4", "scale-5", "space", "replicate", "reference", "proposed"],
  ...["validation", "serving", "card"],
];
const HOLLOW = { dot: "ring", diamond: "hollow-diamond" };
const POINTS = new Set(["dot", "ring", "cross", "diamond", "hollow-diamond", "bar"]);
const SIZE = 4.2; // radius of a point, CSS px
const MAX_CURVE_BARS = 24; // a curve of few points shows its intervals as bars

/** The palette as canvas colours, resolved by the browser: light and dark are chosen there. */
export function resolveColours(element) {
  const style = getComputedStyle(element);
  const before = element.style.color;
  const found = {};
  for (const name of COLOURS) {
    element.style.color = `var(--${name})`;
    found[name] = style.color;
  }
  element.style.color = before;
  return found;
}

/** What is drawn for a series: its mark, whether it is dashed, whether its points are places to point at. */
export function lookOf(series) {
  const isPredicted = series.kind === "predicted";
  const mark = isPredicted ? (HOLLOW[series.mark] ?? series.mark) : series.mark;
  return { mark, isDashed: series.dashed || isPredicted, isPredicted, isPoints: POINTS.has(mark) };
}

/**
 * Paint one series but for its points: what has to end where the plot ends.
 * @param {CanvasRenderingContext2D} ctx
 * @param {object} series of the figure
 * @param {object} place `x` and `y` turn values into device px; `ratio` device px per CSS px; `colours`
 */
export function paintSeries(ctx, series, place) {
  const look = lookOf(series);
  painted(ctx, series, place, () => {
    if (look.mark === "band") paintBand(ctx, series, place, look);
    else if (look.mark === "span") paintSpans(ctx, series, place, look);
    else if (look.mark === "line" || look.mark === "step") paintLine(ctx, series, place, look);
    else paintIntervals(ctx, series, place, look);
  });
}

/** Paint the points of a series, if it has any: one on the edge of the plot is whole. */
export function paintMarks(ctx, series, place) {
  const { mark, isPoints } = lookOf(series);
  if (!isPoints || mark === "bar") return; // a bar is an interval alone
  painted(ctx, series, place, () => {
    for (let i = 0; i < series.x.length; i += 1) {
      const x = place.x(series.x[i]);
      const y = place.y(series.y[i]);
      if (Number.isFinite(x) && Number.isFinite(y)) paintPoint(ctx, mark, x, y, place);
    }
  });
}

function painted(ctx, series, place, paint) {
  ctx.save();
  ctx.strokeStyle = ctx.fillStyle = place.colours[series.colour];
  ctx.lineWidth = 1.7 * place.ratio;
  ctx.lineJoin = "round";
  ctx.setLineDash([]);
  paint();
  ctx.restore();
}

function dash(ctx, isDashed, ratio) {
  ctx.setLineDash(isDashed ? [6 * ratio, 3.5 * ratio] : []);
}

function paintBand(ctx, series, place, look) {
  const ends = series.y_interval.map((interval, i) => interval && [place.x(series.x[i]), ...interval.map(place.y)]);
  const run = ends.filter((end) => end && end.every(Number.isFinite));
  if (run.length < 2) return;
  const trace = (which) => run.forEach((end, i) => (i ? ctx.lineTo(end[0], end[which]) : ctx.moveTo(end[0], end[which])));
  ctx.beginPath();
  trace(1);
  for (const end of [...run].reverse()) ctx.lineTo(end[0], end[2]);
  ctx.closePath();
  ctx.globalAlpha = 0.15;
  ctx.fill();
  ctx.globalAlpha = 0.45;
  ctx.lineWidth = place.ratio;
  dash(ctx, look.isDashed, place.ratio * 0.6);
  for (const which of [1, 2]) {
    ctx.beginPath();
    trace(which);
    ctx.stroke();
  }
}

function paintSpans(ctx, series, place, look) {
  const thick = Math.min(18 * place.ratio, Math.max(3 * place.ratio, 0.64 * Math.abs(place.y(0) - place.y(1))));
  series.x_interval.forEach((interval, i) => {
    if (!interval) return;
    const [from, to] = interval.map(place.x);
    const middle = place.y(series.y[i]);
    const width = Math.max(to - from - place.ratio, place.ratio); // neighbours stay apart
    ctx.beginPath();
    ctx.roundRect(from, middle - thick / 2, width, thick, Math.min(2.5 * place.ratio, width / 2));
    if (look.isDashed) {
      ctx.globalAlpha = 0.18;
      ctx.fill();
      ctx.globalAlpha = 1;
      ctx.lineWidth = 1.2 * place.ratio;
      dash(ctx, true, place.ratio * 0.6);
      ctx.stroke();
    } else ctx.fill();
  });
}

function paintLine(ctx, series, place, look) {
  if (series.x.length <= MAX_CURVE_BARS) paintIntervals(ctx, series, place, look);
  dash(ctx, look.isDashed, place.ratio);
  ctx.beginPath();
  let isDown = false;
  let before = 0;
  series.x.forEach((value, i) => {
    const x = place.x(value);
    const y = place.y(series.y[i]);
    if (!Number.isFinite(x) || !Number.isFinite(y)) {
      isDown = false;
      return;
    }
    if (isDown && look.mark === "step") ctx.lineTo(x, before);
    if (isDown) ctx.lineTo(x, y);
    else ctx.moveTo(x, y);
    isDown = true;
    before = y;
  });
  ctx.stroke();
}

function paintPoint(ctx, mark, x, y, { ratio, colours }) {
  const size = SIZE * ratio;
  ctx.beginPath();
  if (mark === "cross") {
    const arm = 0.85 * size;
    ctx.moveTo(x - arm, y - arm);
    ctx.lineTo(x + arm, y + arm);
    ctx.moveTo(x + arm, y - arm);
    ctx.lineTo(x - arm, y + arm);
    ctx.stroke();
    return;
  }
  if (mark.endsWith("diamond")) {
    const arm = 1.35 * size;
    ctx.moveTo(x, y - arm);
    ctx.lineTo(x + arm, y);
    ctx.lineTo(x, y + arm);
    ctx.lineTo(x - arm, y);
    ctx.closePath();
  } else ctx.arc(x, y, size, 0, 2 * Math.PI);
  if (mark === "dot" || mark === "diamond") {
    const fill = ctx.fillStyle;
    ctx.fill();
    // A thin edge in the colour of the card keeps points apart that lie on each other.
    ctx.save();
    ctx.strokeStyle = colours.card;
    ctx.lineWidth = 0.9 * ratio;
    ctx.stroke();
    ctx.restore();
    ctx.fillStyle = fill;
  } else {
    ctx.save();
    ctx.fillStyle = colours.card;
    ctx.fill();
    ctx.restore();
    ctx.stroke();
  }
}

function paintIntervals(ctx, series, place, look) {
  if (!series.x_interval.length && !series.y_interval.length) return;
  ctx.save();
  ctx.lineWidth = 1.2 * place.ratio;
  ctx.globalAlpha = 0.75;
  const cap = 3 * place.ratio;
  for (let i = 0; i < series.x.length; i += 1) {
    const x = place.x(series.x[i]);
    const y = place.y(series.y[i]);
    for (const [interval, isAlongX] of [
      [series.x_interval[i], true],
      [series.y_interval[i], false],
    ]) {
      if (!interval) continue;
      const [low, high] = interval.map(isAlongX ? place.x : place.y);
      dash(ctx, look.isPredicted, 0.55 * place.ratio);
      ctx.beginPath();
      if (isAlongX) ctx.moveTo(low, y), ctx.lineTo(high, y);
      else ctx.moveTo(x, low), ctx.lineTo(x, high);
      ctx.stroke();
      ctx.setLineDash([]);
      ctx.beginPath();
      for (const end of [low, high]) {
        if (isAlongX) ctx.moveTo(end, y - cap), ctx.lineTo(end, y + cap);
        else ctx.moveTo(x - cap, end), ctx.lineTo(x + cap, end);
      }
      ctx.stroke();
    }
  }
  ctx.restore();
}

/** A guide: a line or a stripe at values of one axis, or y = x. `box` is the plot in device px. */
export function paintGuide(ctx, guide, place, box) {
  ctx.save();
  ctx.strokeStyle = ctx.fillStyle = place.colours[guide.colour];
  ctx.lineWidth = 1.2 * place.ratio;
  dash(ctx, guide.dashed, place.ratio * 0.7);
  const right = box.left + box.width;
  const bottom = box.top + box.height;
  ctx.beginPath();
  if (guide.axis === "diagonal") {
    const low = Math.max(place.limits.x[0], place.limits.y[0]);
    const high = Math.min(place.limits.x[1], place.limits.y[1]);
    ctx.moveTo(place.x(low), place.y(low));
    ctx.lineTo(place.x(high), place.y(high));
    ctx.stroke();
  } else {
    const along = place[guide.axis];
    const [from, to] = [along(guide.low), along(guide.high)];
    if (guide.low !== guide.high) {
      ctx.globalAlpha = 0.12;
      if (guide.axis === "x") ctx.fillRect(from, box.top, to - from, box.height);
      else ctx.fillRect(box.left, to, box.width, from - to);
    } else {
      if (guide.axis === "x") ctx.moveTo(from, box.top), ctx.lineTo(from, bottom);
      else ctx.moveTo(box.left, from), ctx.lineTo(right, from);
      ctx.stroke();
    }
  }
  ctx.restore();
}

/** The small drawing of a series in the legend, in the current text colour. */
export function glyph(series) {
  const { mark, isDashed } = lookOf(series);
  const line = { x1: 1, y1: 6, x2: 25, y2: 6, "stroke-width": 2, "stroke-dasharray": isDashed ? "6 3.2" : null };
  const shapes = {
    dot: () => s("circle", { cx: 13, cy: 6, r: 4.3, fill: "currentColor", stroke: "none" }),
    ring: () => s("circle", { cx: 13, cy: 6, r: 3.8, "stroke-width": 1.8 }),
    cross: () => s("path", { d: "M9.5 2.5l7 7M16.5 2.5l-7 7", "stroke-width": 1.8 }),
    diamond: () => s("path", { d: "M13 .8l5.2 5.2-5.2 5.2-5.2-5.2z", fill: "currentColor", stroke: "none" }),
    "hollow-diamond": () => s("path", { d: "M13 1l5 5-5 5-5-5z", "stroke-width": 1.7 }),
    line: () => s("line", line),
    step: () => s("path", { d: "M1 10h8V6h8V2h8", "stroke-width": 1.8, "stroke-dasharray": line["stroke-dasharray"] }),
    band: () => s("rect", { x: 1, y: 1, width: 24, height: 10, rx: 2, fill: "currentColor", "fill-opacity": 0.22, stroke: "none" }),
    span: () =>
      isDashed
        ? s("rect", { x: 2, y: 2, width: 22, height: 8, rx: 2, "stroke-width": 1.3, "stroke-dasharray": "4 2" })
        : s("rect", { x: 1, y: 1.5, width: 24, height: 9, rx: 2, fill: "currentColor", stroke: "none" }),
    bar: () => s("path", { d: "M3 6h20M3 3v6M23 3v6", "stroke-width": 1.6 }),
    stripe: () => s("rect", { x: 8, y: 0, width: 10, height: 12, fill: "currentColor", "fill-opacity": 0.2, stroke: "none" }),
  };
  return s("svg.glyph", { viewBox: "0 0 26 12", fill: "none", stroke: "currentColor", "aria-hidden": "true" }, [
    (shapes[mark] ?? shapes.line)(),
  ]);
}

/** The same for a guide. */
export function guideGlyph(guide) {
  return glyph({ kind: "", mark: guide.low !== guide.high ? "stripe" : "line", dashed: guide.dashed });
}
