// One plot: uPlot keeps scales, axes and the canvas; marks, pointing, keys and zoom are ours, from a Figure value.

import uPlot from "./vendor/uPlot.esm.js";
import { h } from "./dom.js";
import { figure as number } from "./format.js";
import { lookOf, paintGuide, paintMarks, paintSeries, resolveColours } from "./marks.js";
import { limits, tickLabels, ticks } from "./ticks.js";

const REACH = 18; // how near the pointer must be, CSS px
const CURVE_REACH = 12;
const FONT = '11.5px "Segoe UI", Roboto, "Helvetica Neue", "Liberation Sans", system-ui, sans-serif';
const MIN_DRAG = 8;
const SIDES = [[0.7, -1], [-0.7, -1], [0.7, 1], [-0.7, 1], [1.2, 0], [-1.2, 0], [0, -1.5], [0, 1.5]]; // where a name may stand, in gaps
const RINGS = [1, 2.4, 3.8, 5.2]; // nearer first

/** A plot of a Figure value in `holder`, which gives it its width. */
export class Chart {
  /**
   * @param {HTMLElement} holder
   * @param {object} figure with at least one series
   * @param {object} acts `open(trialId)` where a click leads, `say(sentence)` for those who do not see it
   */
  constructor(holder, figure, { open, say }) {
    this.holder = holder;
    this.figure = figure;
    this.open = open;
    this.say = say;
    this.hidden = new Set(); // names of series
    this.zoom = null; // {x: [low, high], y: [low, high]}
    this.at = null; // {series, index} that is pointed at
    this.tip = h("div.tip", { hidden: true });
    this.ring = h("div.tip-ring", { hidden: true });
    this.colours = resolveColours(holder);
    this.width = holder.clientWidth;
    this.#build();
    this.#listenToKeys();
    this.resizing = new ResizeObserver(() => this.#resize());
    this.resizing.observe(holder);
  }

  /** Show another value of the same figure; zoom and hidden series stay. */
  update(figure) {
    this.figure = figure;
    this.leave();
    this.#rebuild();
  }

  toggle(name) {
    if (!this.hidden.delete(name)) this.hidden.add(name);
    this.leave();
    this.plot.redraw(false, false);
  }

  recolour() {
    this.colours = resolveColours(this.holder);
    this.plot.redraw(false, true);
  }

  destroy() {
    this.resizing.disconnect();
    this.plot.destroy();
  }

  get canvas() {
    return this.plot.ctx.canvas;
  }

  #build() {
    this.plot = new uPlot(this.#options(), this.#data(), this.holder);
    this.canvas.setAttribute("aria-hidden", "true");
    this.plot.over.append(this.ring, this.tip);
    this.#listenToPointer(this.plot.over);
  }

  #rebuild() {
    this.plot.destroy();
    this.#build();
  }

  /** uPlot wants data for its scales; what is drawn comes from the figure. */
  #data() {
    const { x, y } = this.#limits();
    return [x, y];
  }

  #limits() {
    if (this.zoom) return this.zoom;
    const { figure } = this;
    const values = { x: [], y: [] };
    const intervals = { x: [], y: [] };
    for (const series of figure.series) {
      const isBand = series.mark === "band";
      if (series.mark === "span") values.x.push(...series.x_interval.flat().filter(Number.isFinite));
      else values.x.push(...series.x);
      if (!isBand) values.y.push(...series.y);
      for (const axis of ["x", "y"]) {
        // A band may leave the plot at its ends: runs and curve tell the limits.
        if (!isBand) intervals[axis].push(...series[`${axis}_interval`].filter(Boolean));
      }
    }
    for (const guide of figure.guides) {
      if (guide.axis !== "diagonal") intervals[guide.axis].push([guide.low, guide.high]);
    }
    return { x: limits(figure.x, values.x, intervals.x), y: limits(figure.y, values.y, intervals.y) };
  }

  #height() {
    const { y, is_wide } = this.figure;
    if (y.categories.length) return 76 + 26 * y.categories.length;
    const wanted = is_wide ? 0.4 * this.width : 0.62 * this.width;
    return Math.round(Math.min(is_wide ? 400 : 380, Math.max(250, wanted)));
  }

  #options() {
    const { x, y } = this.figure;
    return {
      width: Math.max(this.width, 200),
      height: this.#height(),
      padding: [10, 16, 0, 0],
      legend: { show: false },
      cursor: { x: false, y: false, points: { show: false }, drag: { x: true, y: true, setScale: false, dist: MIN_DRAG } },
      select: { show: true },
      focus: { alpha: 1 },
      scales: { x: this.#scale("x", x), y: this.#scale("y", y) },
      axes: [this.#axis("x", x), this.#axis("y", y)],
      series: [{}, { scale: "y", paths: () => null, points: { show: false } }],
      hooks: { draw: [(plot) => this.#paint(plot)], setSelect: [(plot) => this.#zoomTo(plot)] },
    };
  }

  #scale(name, axis) {
    return {
      time: false,
      distr: axis.scale === "log" && !axis.categories.length ? 3 : 1,
      range: () => this.#limits()[name],
    };
  }

  #axis(name, axis) {
    const isX = name === "x";
    const isLanes = axis.categories.length > 0;
    const room = (plot) => (isX ? (plot.bbox.width || 400) / 84 : (plot.bbox.height || 300) / (isLanes ? 18 : 46)) / uPlot.pxRatio;
    return {
      scale: name,
      side: isX ? 2 : 3,
      font: FONT,
      labelFont: FONT,
      stroke: () => this.colours.soft,
      size: isX ? 28 : (plot, labels) => this.#labelWidth(plot, labels),
      label: isX ? titleOf(axis) : undefined,
      labelSize: isX ? 18 : 0,
      labelGap: 0,
      gap: 6,
      grid: { show: !(isLanes && !isX), stroke: () => this.colours.hair, width: 1 },
      ticks: { show: false },
      border: { show: isX, stroke: () => this.colours.soft, width: 1 },
      splits: (plot, _, low, high) => axis.ticks?.length ? axis.ticks.filter((tick) => tick >= low && tick <= high) : ticks(axis, low, high, { wanted: Math.max(2, Math.floor(room(plot))), isWhole: this.#isWhole(name) }),
      filter: (plot, places) => places, // uPlot would leave out what is not a power of ten
      values: (plot, places) => this.#shortened(plot, tickLabels(axis, places), isX),
    };
  }

  /** Whether an axis counts things: it then has no ticks between whole numbers. */
  #isWhole(name) {
    return this.figure.series.every((series) => series[name].every(Number.isInteger));
  }

  #labelWidth(plot, labels) {
    if (!labels?.length) return 40;
    plot.ctx.save();
    plot.ctx.font = FONT;
    const width = Math.max(...labels.map((label) => plot.ctx.measureText(label).width));
    plot.ctx.restore();
    return Math.ceil(width) + 12;
  }

  /** Names of lanes take at most a third of the width. */
  #shortened(plot, labels, isX) {
    const most = isX ? Infinity : Math.max(8, Math.floor(this.width / 3 / 6.4));
    return labels.map((label) => (label.length > most ? `${label.slice(0, most - 1)}…` : label));
  }

  #place(plot) {
    const { x, y } = this.#limits();
    const inside = (scale, value) => (plot.scales[scale].distr === 3 && value <= 0 ? NaN : plot.valToPos(value, scale, true));
    return {
      x: (value) => inside("x", value),
      y: (value) => inside("y", value),
      ratio: uPlot.pxRatio,
      colours: this.colours,
      limits: { x, y },
    };
  }

  #paint(plot) {
    const { ctx, bbox } = plot;
    const place = this.#place(plot);
    ctx.save();
    ctx.beginPath();
    ctx.rect(bbox.left, bbox.top - 2, bbox.width + 2, bbox.height + 4);
    ctx.clip();
    for (const guide of this.figure.guides) paintGuide(ctx, guide, place, bbox);
    for (const series of this.#shown()) paintSeries(ctx, series, place);
    ctx.restore();
    ctx.save();
    ctx.beginPath();
    const edge = 7 * place.ratio;
    ctx.rect(bbox.left - edge, bbox.top - edge, bbox.width + 2 * edge, bbox.height + 2 * edge);
    ctx.clip();
    for (const series of this.#shown()) paintMarks(ctx, series, place);
    ctx.restore();
    this.#paintLabels(ctx, place, bbox);
  }

  #shown() {
    return this.figure.series.filter((series) => !this.hidden.has(series.name));
  }

  /** Names beside points, where there is room for them. */
  #paintLabels(ctx, place, bbox) {
    const taken = this.#shown().flatMap((series) => (lookOf(series).isPoints ? series.x.map((x, i) => around(place.x(x), place.y(series.y[i]), 5 * place.ratio)) : []));
    ctx.save();
    ctx.font = FONT.replace(/^[\d.]+/, (size) => String(Number(size) * place.ratio));
    ctx.textBaseline = "middle";
    ctx.textAlign = "left";
    ctx.fillStyle = place.colours.ink;
    ctx.strokeStyle = place.colours.card;
    ctx.lineWidth = 3 * place.ratio;
    ctx.lineJoin = "round";
    for (const series of this.#shown()) {
      if (!series.show_labels) continue;
      series.labels.forEach((label, i) => this.#paintLabel(ctx, label.split(":")[0], place.x(series.x[i]), place.y(series.y[i]), { bbox, taken, place }));
    }
    ctx.restore();
  }

  #paintLabel(ctx, label, x, y, { bbox, taken, place }) {
    const width = ctx.measureText(label).width;
    const height = 14 * place.ratio;
    const gap = 9 * place.ratio;
    const tries = RINGS.flatMap((ring) => SIDES.map(([across, down]) => [across > 0 ? x + ring * across * gap : across < 0 ? x + ring * across * gap - width : x - width / 2, y + ring * down * gap]));
    const right = bbox.left + bbox.width + 12 * place.ratio;
    const isIn = ([left, middle]) => left >= bbox.left && left + width <= right && middle - height / 2 >= bbox.top && middle + height / 2 <= bbox.top + bbox.height;
    const isFree = ([left, middle]) => {
      const box = [left, middle - height / 2, left + width, middle + height / 2];
      return taken.every((one) => box[2] < one[0] || box[0] > one[2] || box[3] < one[1] || box[1] > one[3]);
    };
    const found = tries.filter(isIn).find(isFree);
    if (!found) return; // pointing at it tells its name, and so does the table
    const [left, middle] = found;
    taken.push([left, middle - height / 2, left + width, middle + height / 2]);
    if (tries.indexOf(found) >= SIDES.length) paintLeader(ctx, { x, y, left, middle, width, place });
    ctx.strokeText(label, left, middle); // an edge of the card's colour over what lies below
    ctx.fillText(label, left, middle);
  }

  // Zoom

  #zoomTo(plot) {
    const { left, top, width, height } = plot.select;
    if (width < MIN_DRAG && height < MIN_DRAG) return;
    const x = width >= MIN_DRAG ? [plot.posToVal(left, "x"), plot.posToVal(left + width, "x")] : this.#limits().x;
    const y = height >= MIN_DRAG ? [plot.posToVal(top + height, "y"), plot.posToVal(top, "y")] : this.#limits().y;
    this.zoom = { x, y };
    plot.setSelect({ left: 0, top: 0, width: 0, height: 0 }, false);
    this.#rescale();
    this.say("Zoomed in. Escape or a double click shows everything again.");
  }

  resetZoom() {
    if (!this.zoom) return;
    this.zoom = null;
    this.#rescale();
  }

  #rescale() {
    this.leave();
    this.holder.classList.toggle("zoomed", this.zoom !== null);
    this.plot.setData(this.#data());
  }

  #resize() {
    const { clientWidth } = this.holder;
    if (clientWidth === 0 || Math.abs(clientWidth - this.width) < 2) return;
    this.width = clientWidth;
    this.leave();
    this.plot.setSize({ width: Math.max(clientWidth, 200), height: this.#height() });
  }

  // Pointing

  #listenToPointer(over) {
    let down = null;
    over.addEventListener("pointermove", (event) => this.#point(this.#nearest(event)));
    over.addEventListener("pointerleave", () => this.leave());
    over.addEventListener("pointerdown", (event) => {
      down = [event.clientX, event.clientY];
    });
    over.addEventListener("click", (event) => {
      const isDrag = down && Math.hypot(event.clientX - down[0], event.clientY - down[1]) > 4;
      if (!isDrag) this.#follow(this.#nearest(event));
    });
    over.addEventListener("dblclick", () => this.resetZoom());
  }

  #nearest(event) {
    const box = this.plot.over.getBoundingClientRect();
    const [left, top] = [event.clientX - box.left, event.clientY - box.top];
    let best = null;
    let distance = Infinity;
    for (const series of this.#shown()) {
      const reach = lookOf(series).isPoints ? REACH : CURVE_REACH;
      for (let index = 0; index < series.x.length; index += 1) {
        const away = this.#distance(series, index, left, top) + (lookOf(series).isPoints ? 0 : 6);
        if (away < distance && away <= reach) {
          distance = away;
          best = { series, index };
        }
      }
    }
    return best;
  }

  /** CSS px from a place on the plot to a point; zero within a span. */
  #distance(series, index, left, top) {
    const y = this.plot.valToPos(series.y[index], "y");
    if (series.mark !== "span") return Math.hypot(this.plot.valToPos(series.x[index], "x") - left, y - top);
    const interval = series.x_interval[index];
    if (!interval) return Infinity;
    const [from, to] = interval.map((value) => this.plot.valToPos(value, "x"));
    return Math.hypot(Math.max(from - left, 0, left - to), Math.max(Math.abs(y - top) - 9, 0));
  }

  #position({ series, index }) {
    const interval = series.mark === "span" ? series.x_interval[index] : null;
    const x = interval ? (interval[0] + interval[1]) / 2 : series.x[index];
    return [this.plot.valToPos(x, "x"), this.plot.valToPos(series.y[index], "y")];
  }

  #point(at) {
    if (at?.series === this.at?.series && at?.index === this.at?.index) return;
    this.at = at;
    this.tip.hidden = this.ring.hidden = at === null;
    this.plot.over.classList.toggle("leads", Boolean(at && at.series.trial_ids[at.index]));
    if (at === null) return;
    const told = describe(this.figure, at.series, at.index);
    this.tip.replaceChildren(...tipLines(told));
    const [left, top] = this.#position(at);
    this.ring.classList.toggle("on-span", at.series.mark === "span");
    Object.assign(this.ring.style, { left: `${left}px`, top: `${top}px` });
    this.#placeTip(left, top);
  }

  #placeTip(left, top) {
    const { clientWidth, clientHeight } = this.plot.over;
    const { offsetWidth, offsetHeight } = this.tip;
    const beside = left + 14 + offsetWidth <= clientWidth ? left + 14 : left - 14 - offsetWidth;
    const x = Math.max(-40, Math.min(beside, clientWidth - offsetWidth + 12));
    const y = Math.max(-8, Math.min(top - offsetHeight / 2, clientHeight - offsetHeight + 24));
    Object.assign(this.tip.style, { left: `${x}px`, top: `${y}px` });
  }

  leave() {
    this.#point(null);
  }

  #follow(at) {
    const trial = at?.series.trial_ids[at.index];
    if (trial) this.open(trial);
  }

  // Keys: left and right from point to point, up and down from series to series, Enter opens the trial

  #listenToKeys() {
    this.holder.addEventListener("keydown", (event) => {
      const moves = { ArrowRight: [1, 0], ArrowLeft: [-1, 0], ArrowDown: [0, 1], ArrowUp: [0, -1] };
      if (moves[event.key]) this.#move(...moves[event.key]);
      else if (event.key === "Enter" && this.at) this.#follow(this.at);
      else if (event.key === "Escape") this.at ? this.leave() : this.resetZoom();
      else return;
      event.preventDefault();
    });
    this.holder.addEventListener("blur", () => this.leave());
  }

  #move(along, across) {
    const all = this.#shown().filter((series) => series.x.length);
    if (!all.length) return;
    const row = this.at ? all.indexOf(this.at.series) : -1;
    const next = all[(Math.max(row, 0) + (row < 0 ? 0 : across) + all.length) % all.length];
    const order = next.x.map((_, index) => index).sort((one, other) => next.x[one] - next.x[other]);
    const rank = row < 0 || across ? 0 : (order.indexOf(this.at.index) + along + order.length) % order.length;
    this.#point({ series: next, index: order[rank] });
    this.say(spoken(describe(this.figure, next, order[rank])));
  }
}

/** A thin line from a name that had to go further away to its point. */
function paintLeader(ctx, { x, y, left, middle, width, place }) {
  ctx.save();
  ctx.strokeStyle = place.colours.soft;
  ctx.lineWidth = 0.8 * place.ratio;
  ctx.beginPath();
  ctx.moveTo(x, y);
  ctx.lineTo(Math.min(Math.max(x, left), left + width), middle);
  ctx.stroke();
  ctx.restore();
}

/** The box about a point. */
function around(x, y, reach) {
  return [x - reach, y - reach, x + reach, y + reach];
}

/** An axis with its unit. */
export function titleOf(axis) {
  const unit = axis.unit ? ` (${axis.unit})` : "";
  return `${axis.label}${unit}${axis.scale === "log" && !/\blog\b/.test(axis.label) ? ", log scale" : ""}`;
}

/**
 * What a point is, in words.
 * @returns {{label: string, series: string, kind: string, rows: Array<{name: string, value: string, interval: string}>, trial: string}}
 */
export function describe(figure, series, index) {
  return {
    label: series.labels[index] ?? "",
    series: series.name,
    kind: series.kind,
    rows: [
      quantity(figure.x, series.mark === "span" ? null : series.x[index], series.x_interval[index]),
      quantity(figure.y, series.mark === "band" ? null : series.y[index], series.y_interval[index]),
    ],
    trial: series.trial_ids[index] ?? "",
  };
}

function quantity(axis, value, interval) {
  const say = (one) => (axis.categories.length ? (axis.categories[Math.round(one)] ?? "") : number(one, axis.unit));
  const unit = axis.unit && !axis.categories.length ? ` ${axis.unit}` : "";
  return {
    name: axis.label || axis.unit,
    value: value === null ? "" : say(value) + unit,
    interval: interval ? `${say(interval[0])} to ${say(interval[1])}${value === null ? unit : ""}` : "",
  };
}

function tipLines({ label, series, kind, rows, trial }) {
  return [
    label ? h("strong", label) : null,
    series || kind ? h("div.tip-who", series, kind ? h("span.tag", { class: kind }, kind) : null) : null,
    h(
      "dl",
      rows
        .filter((row) => row.value || row.interval)
        .map((row) => [h("dt", row.name), h("dd", row.value, row.interval ? h("small", ` ${row.value ? "[" : ""}${row.interval}${row.value ? "]" : ""}`) : null)]),
    ),
    trial ? h("div.tip-leads", "click opens the trial") : null,
  ].filter(Boolean);
}

function spoken({ label, series, kind, rows, trial }) {
  const values = rows.map((row) => [row.name, row.value, row.interval && `interval ${row.interval}`].filter(Boolean).join(" "));
  return [label, series, kind, ...values, trial && "Enter opens the trial"].filter(Boolean).join(", ");
}
