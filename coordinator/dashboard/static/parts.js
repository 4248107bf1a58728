// Small parts that several pages are made of.

import { announce, download, h, s } from "./dom.js";
import { clock, count, moment, short, words } from "./format.js";

const ICONS = {
  ok: "M5 10.5l3.2 3.2L15 6.8",
  warning: "M10 5.5v5.2M10 13.9v.2",
  problem: "M6.5 6.5l7 7M13.5 6.5l-7 7",
  unknown: "M7.8 7.6a2.3 2.3 0 1 1 3.3 2.2c-.8.4-1.1.8-1.1 1.6M10 14.3v.1",
};

/** The sign of a level of health; its word is told beside it or as its label. */
export function levelIcon(level, { label = level } = {}) {
  return s("svg.level", { class: `level-${level}`, viewBox: "0 0 20 20", role: "img", "aria-label": label }, [
    level === "warning" ? s("path.plate", { d: "M10 1.5 19 17.5H1z" }) : s("circle.plate", { cx: 10, cy: 10, r: 9 }),
    s("path.stroke", { d: ICONS[level] ?? ICONS.unknown }),
  ]);
}

/** Whether something was measured, predicted, or neither. */
export function tag(kind) {
  return h("span.tag", { class: kind === "not measured" ? "absent" : kind }, kind);
}

/** A trial's or an agent's state with its colour. */
export function state(name) {
  return h("span.state", { class: `state-${name}` }, h("i", { "aria-hidden": "true" }), words(name));
}

/** What a trial is for, with the colour it has in the figures. */
export function role(name) {
  return h("span.role", { class: `c-${name}` }, h("i", { "aria-hidden": "true" }), h("span", words(name)));
}

/** A heading, what it is about, and what to do beside it. */
export function pageHead(title, { lead = null, beside = null } = {}) {
  return h("header.page-head", [
    h("div", [h("h1", title), lead ? h("p.lead", lead) : null]),
    beside ? h("div.beside", beside) : null,
  ]);
}

/** A card that stands on its own under the page's heading. */
export function card(title, ...children) {
  return h("section.card", [h("h2.card-title", title), children]);
}

/** A card within a section that has a heading of its own. */
export function subcard(title, ...children) {
  return h("section.card", [h("h3.card-title", title), children]);
}

/** A part of a long page: its heading, what it answers, and what stands under it. */
export function part(title, lead, ...children) {
  return h("section.part", [h("header.part-head", [h("h2", title), lead ? h("p.note", lead) : null]), children]);
}

/** An Amount: value, unit, whether measured; its interval and what it rests on below. */
export function amount(value, { isSmall = false } = {}) {
  const hasValue = value.text !== "";
  return h("div.amount", { class: isSmall ? "small" : "" }, [
    h("div.amount-line", [
      hasValue ? h("span.number", value.text) : null,
      hasValue && value.unit ? h("span.unit", value.unit) : null,
      tag(value.kind),
    ]),
    value.interval ? h("div.interval", intervalWords(value)) : null,
    value.note ? h("div.note", value.note) : null,
  ]);
}

/** What those of these Amounts are that are there at all: measured or simulated. */
export function originOf(amounts) {
  return amounts.find((one) => one.kind !== "not measured")?.kind ?? "measured";
}

/** An Amount in one line for tables; its note is told on hovering. `absent`: what is said where there is none. */
export function inlineAmount(value, { absent = "not measured" } = {}) {
  if (value.text === "") return h("span.absent", { title: value.note }, absent);
  const title = [value.interval, value.note].filter(Boolean).join("; ") || null;
  return h("span.inline-amount", { class: value.kind, title }, [
    value.text,
    value.low !== null ? h("small", ` ${value.interval.split("]")[0]}]`) : null,
  ]);
}

function intervalWords(value) {
  return value.interval.replace(/^\[/, "").replace(/\] ?/, ", ").replace(", ", " to ").replace(/, $/, "");
}

/** A number that is looked for first: name, Amount. */
export function stat(name, value, { help = null } = {}) {
  return h("div.stat", [h("div.stat-name", { title: help }, name), amount(value)]);
}

/** A number without an interval of its own, with the reason or meaning below it. */
export function plainStat(name, value, note) {
  return h("div.stat", [
    h("div.stat-name", name),
    h("div.amount", [h("div.amount-line", h("span.number", value)), note ? h("div.note", note) : null]),
  ]);
}

/** Facts as names and values; null where one does not apply. */
export function facts(list) {
  return h(
    "dl.facts",
    list.filter(Boolean).map(({ name, value, note }) => [
      h("dt", name),
      h("dd", value, note ? h("span.note", value ? ` ${note}` : note) : null),
    ]),
  );
}

/**
 * A table.
 * @param {Array<{name: string, isNumber?: boolean, title?: string}>} heads
 * @param {Array<Array>} rows of cells
 */
export function table(caption, heads, rows) {
  return h("div.scroll", { tabindex: 0, role: "region", "aria-label": caption }, [
    h("table", [
      h("caption.visually-hidden", caption),
      h("thead", h("tr", heads.map(({ name, isNumber, title }) => h("th", { scope: "col", class: isNumber ? "n" : "", title }, name)))),
      h("tbody", rows.map((row) => h("tr", row.map((cell, place) => h("td", { class: heads[place].isNumber ? "n" : "" }, cell))))),
    ]),
  ]);
}

export function missing(sentence) {
  return h("p.missing", sentence);
}

/** What a reader must know before taking numbers from here. */
export function caveats(list) {
  return h("section.card.honest", [h("h2.card-title", "What this is and is not"), sentences(list)]);
}

export function sentences(list) {
  return h("ul.plain", list.map((sentence) => h("li", sentence)));
}

/** A moment as the time of its day, the whole of it on hovering. */
export function time(unix) {
  return h("time", { datetime: new Date(1000 * unix).toISOString(), title: moment(unix) }, clock(unix));
}

export function trialLink(trialId, text = trialId) {
  return h("a", { href: `/trials/${trialId}` }, text);
}

/** A share of one as a bar. */
export function meter(fraction, { label, tone = "accent" }) {
  const inner = h("i", { class: `tone-${tone}` });
  inner.style.width = `${100 * Math.min(1, Math.max(0, fraction))}%`;
  return h("div.meter", { role: "meter", "aria-label": label, "aria-valuemin": 0, "aria-valuemax": 1, "aria-valuenow": fraction.toFixed(3) }, inner);
}

/** Parts of a whole as one bar, with their counts below. `parts`: {name, number, tone}. */
export function shares(parts, { label }) {
  const total = parts.reduce((sum, part) => sum + part.number, 0) || 1;
  const bar = h("div.shares", { role: "img", "aria-label": `${label}: ${parts.map((part) => `${part.number} ${part.name}`).join(", ")}` });
  for (const { number, tone } of parts) {
    if (!number) continue;
    const piece = h("i", { class: `tone-${tone}` });
    piece.style.flexGrow = String(number / total);
    bar.append(piece);
  }
  const names = parts.map(({ name, number, tone }) =>
    h("li", { class: number ? "" : "none" }, h("i", { class: `tone-${tone}`, "aria-hidden": "true" }), h("b", count(number)), ` ${name}`),
  );
  return [bar, h("ul.share-names", { "aria-hidden": "true" }, names)];
}

/**
 * Amounts of one unit on one scale: points with their intervals, hollow where predicted.
 * @param {Array<{name: string, amount: object, colour: string}>} rows
 * @param {number|null} neutral a value that means "no difference"
 */
export function intervals(rows, { neutral = null } = {}) {
  const known = rows.filter((row) => row.amount.value !== null);
  const ends = known.flatMap(({ amount: { value, low, high } }) => [value, low ?? value, high ?? value]);
  if (neutral !== null) ends.push(neutral);
  const [low, high] = [Math.min(...ends), Math.max(...ends)];
  if (!known.length || low === high) return null;
  const place = (value) => 8 + (224 * (value - low)) / (high - low);
  const height = 16 * known.length + 4;
  const title = known.map(({ name, amount: { text, interval } }) => `${name} ${text} ${interval}`).join("; ");
  return s("svg.intervals", { viewBox: `0 0 240 ${height + (neutral === null ? 0 : 12)}`, role: "img", "aria-label": title }, [
    neutral === null ? null : [s("line.neutral", { x1: place(neutral), x2: place(neutral), y1: 0, y2: height }), s("text", { x: place(neutral), y: height + 9 }, "equal")],
    known.map(({ amount: one, colour }, row) => {
      const y = 10 + 16 * row;
      const isHollow = one.kind === "predicted";
      const dash = isHollow ? "3 2" : null;
      return s("g", { class: `c-${colour}` }, [
        one.low === null ? null : s("line", { x1: place(one.low), x2: place(one.high), y1: y, y2: y, "stroke-dasharray": dash }),
        one.low === null ? null : [one.low, one.high].map((end) => s("line", { x1: place(end), x2: place(end), y1: y - 3, y2: y + 3 })),
        s("circle", { cx: place(one.value), cy: y, r: 4, class: isHollow ? "hollow" : "filled" }),
      ]);
    }),
  ]);
}

/** A shape in short, as facts. */
export function shapeFacts(shape) {
  return facts([
    { name: "N (non-embedding)", value: short(shape.num_parameters) },
    { name: "x = d / √N", value: shape.x.toPrecision(3) },
    { name: "r = MLP / attention", value: shape.r.toPrecision(3) },
    { name: "layers", value: String(shape.num_hidden_layers) },
    { name: "hidden, intermediate", value: `${shape.hidden_size}, ${shape.intermediate_size}` },
    { name: "heads, KV heads, size", value: `${shape.num_attention_heads}, ${shape.num_key_value_heads}, ${shape.head_dim}` },
  ]);
}

/** A button that copies a value as JSON. */
export function copyButton(value, words, { isPrimary = false } = {}) {
  const text = JSON.stringify(value, null, 2);
  const button = h("button.button", { type: "button", class: isPrimary ? "primary" : "", onclick: () => copyText(text, button) }, words);
  return button;
}

/** JSON with buttons that copy and save it. */
export function jsonBlock(name, value, { isOpen = true } = {}) {
  const text = JSON.stringify(value, null, 2);
  const save = h("button.button", { type: "button", onclick: () => download(name, new Blob([`${text}\n`], { type: "application/json" })) }, "Download");
  const block = h("pre.code", { tabindex: 0, "aria-label": name }, text);
  return h("details.json", { open: isOpen }, [h("summary", h("code", name)), h("div.json-tools", [copyButton(value, "Copy"), save]), block]);
}

async function copyText(text, button) {
  const before = button.textContent;
  const isCopied = await writeClipboard(text);
  button.textContent = isCopied ? "Copied" : "Not allowed here";
  announce(button.textContent);
  setTimeout(() => {
    button.textContent = before;
  }, 1600);
}

/** The clipboard needs a secure origin; by plain http from another machine the older way still works. */
async function writeClipboard(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    const area = h("textarea.visually-hidden", { readonly: true });
    area.value = text;
    document.body.append(area);
    area.select();
    const isCopied = document.execCommand("copy");
    area.remove();
    return isCopied;
  }
}

/**
 * Parts of a page that are drawn again only where their own value changed: what is read, opened, focused or selected
 * elsewhere stays as it is while a run goes on.
 */
export class Slots {
  constructor(root) {
    this.root = root;
    this.slots = new Map(); // key -> {holder, text}
  }

  /**
   * @param {string} key slots stand in the order of their first use
   * @param {*} value JSON that the part is made of
   * @param {function} draw value -> nodes
   * @param {HTMLElement} parent where the slot stands; the page itself by default
   */
  show(key, value, draw, parent = this.root) {
    const text = JSON.stringify(value);
    let slot = this.slots.get(key);
    if (slot?.text === text) return;
    if (!slot) {
      slot = { holder: h("div.slot", { "data-slot": key }) };
      this.slots.set(key, slot);
      parent.append(slot.holder);
    }
    slot.text = text;
    const focused = slot.holder.contains(document.activeElement) ? traceOf(document.activeElement) : null;
    const open = [...slot.holder.querySelectorAll("details")].map((one) => one.open);
    slot.holder.replaceChildren(...[draw(value)].flat(Infinity).filter(Boolean));
    slot.holder.querySelectorAll("details").forEach((one, i) => {
      if (open.length) one.open = open[i] ?? one.open;
    });
    if (focused) slot.holder.querySelector(focused)?.focus({ preventScroll: true });
  }
}

/** A selector that finds the element again after its slot was drawn anew. */
function traceOf(element) {
  const href = element.getAttribute("href");
  if (element.id) return `#${CSS.escape(element.id)}`;
  return href ? `a[href="${CSS.escape(href)}"]` : null;
}
