// Trials: all of them, a line each. Only the lines in view exist; filter and order are made here, of what was fetched.

import { get } from "../api.js";
import { announce, debounced, h } from "../dom.js";
import { count, duration, figure, percent, short, words } from "../format.js";
import { pageHead, role, state } from "../parts.js";

const CHUNK = 500; // rows asked for at a time
const LINE = 34; // px; .trial-table tr has the same
const MARGIN = 4; // lines drawn beyond the view on either side
const STATES = ["running", "queued", "succeeded", "failed"];
const PHASES = ["train", "bench"];

/** Of each: `of`, what it is ordered by; `tells`, its cell in words; `fill`, where the cell is more than these words. */
const COLUMNS = [
  { key: "position", name: "#", isNumber: true, of: (row) => row.position, tells: (row) => count(row.position) },
  { key: "trial_id", name: "trial", of: (row) => row.trial_id, tells: (row) => row.trial_id, fill: fillLink },
  { key: "state", name: "state", of: (row) => STATES.indexOf(row.state), tells: (row) => `${words(row.state)} ${stateNote(row)}`, fill: fillState },
  { key: "role", name: "role", of: (row) => row.role, tells: (row) => row.role, fill: (cell, row) => cell.replaceChildren(role(row.role)), optional: 1 },
  { key: "stage", name: "stage", of: (row) => row.stage, tells: (row) => words(row.stage), optional: 3 },
  { key: "shape", name: "shape", of: (row) => row.shape, tells: (row) => row.shape, fill: fillShape, optional: 2 },
  { key: "x", name: "x", isNumber: true, of: (row) => row.x, tells: (row) => row.x.toPrecision(3), optional: 3 },
  { key: "r", name: "r", isNumber: true, of: (row) => row.r, tells: (row) => row.r.toPrecision(3), optional: 3 },
  { key: "num_tokens", name: "D", isNumber: true, of: (row) => row.num_tokens, tells: (row) => (row.num_tokens === null ? "" : short(row.num_tokens)), optional: 3, title: "Training tokens" },
  { key: "loss", name: "loss", isNumber: true, of: (row) => row.loss, tells: lossWords, fill: fillLoss, title: "Measured held-out loss, nats/token, ± standard error over windows" },
  { key: "rate", name: "tokens/s", isNumber: true, of: (row) => row.rate, tells: rateWords, fill: fillRate, optional: 2, title: "Measured: trained by a training run, output of a benchmark" },
  { key: "agent", name: "agent", of: (row) => row.agent, tells: (row) => row.agent ?? "", optional: 2 },
  { key: "spent_seconds", name: "spent", isNumber: true, of: (row) => row.spent_seconds, tells: (row) => (row.spent_seconds ? duration(row.spent_seconds) : ""), optional: 1 },
  { key: "num_attempts", name: "tries", isNumber: true, of: (row) => row.num_attempts, tells: (row) => (row.num_attempts ? String(row.num_attempts) : ""), optional: 3 },
];

/** Make an element of words alone say something else: to change its text is a fraction of the work of replacing it. */
function say(element, text) {
  if (element.firstChild) element.firstChild.data = text;
  else element.append(text);
}

function fillLink(cell, row) {
  if (!cell.firstChild) cell.append(h("a", { tabindex: -1 }));
  cell.firstChild.href = `/trials/${row.trial_id}`;
  say(cell.firstChild, row.trial_id);
}

function fillShape(cell, row) {
  if (!cell.firstChild) cell.append(h("code"));
  say(cell.firstChild, row.shape);
}

function stateNote(row) {
  if (row.state === "running") return percent(row.done_fraction);
  return row.state === "failed" && row.failure_kind ? words(row.failure_kind) : "";
}

function fillState(cell, row) {
  const note = stateNote(row);
  cell.replaceChildren(state(row.state), note ? h("small", ` ${note}`) : "");
}

function lossError(row) {
  return row.loss_error ? ` ±${row.loss_error.toFixed(4)}` : "";
}

function lossWords(row) {
  if (row.loss === null) return row.phase === "train" ? "" : "–";
  return figure(row.loss, "nats/token") + lossError(row);
}

function fillLoss(cell, row, told) {
  if (told === "–") return cell.replaceChildren(h("span.absent", { title: "A benchmark has no loss" }, told));
  if (cell.lastChild?.localName !== "small") cell.replaceChildren(document.createTextNode(""), h("small"));
  cell.firstChild.data = row.loss === null ? "" : figure(row.loss, "nats/token");
  return say(cell.lastChild, lossError(row));
}

function interval(row) {
  return row.rate_low === null ? null : `${count(row.rate_low)} to ${count(row.rate_high)}`;
}

function rateWords(row) {
  return row.rate === null ? "" : [count(row.rate), interval(row), ...row.flags].join(" ");
}

function fillRate(cell, row) {
  if (!cell.firstChild) cell.append(h("span"));
  const [span, flag] = [cell.firstChild, cell.lastChild];
  say(span, row.rate === null ? "" : count(row.rate));
  span.title = interval(row) ?? "";
  if (flag !== span) flag.remove();
  if (row.flags.length) cell.append(h("span.flag", { title: row.flags.map(words).join(", ") }, " ⚑"));
}

export async function mount(root, { told, go, open }) {
  const rows = new Map(); // position -> row
  const chunkOf = (position) => Math.floor((position - 1) / CHUNK);
  const stale = new Set([0]); // chunks to be asked for again
  const positions = new Map(); // trial id -> position
  const wanted = new URLSearchParams(location.search);
  const filter = { state: wanted.get("state") ?? "", phase: wanted.get("phase") ?? "", query: wanted.get("query") ?? "" };
  const order = { key: wanted.get("sort") ?? "position", isDown: wanted.get("down") === "1" };
  if (!COLUMNS.some((column) => column.key === order.key)) order.key = "position";
  let total = 0;
  let matching = [];
  let active = -1; // index in `matching`
  let drawnFrom = -1;
  const lines = new Map(); // index in `matching` -> the line that shows it
  let isLeft = false;

  const view = build();
  root.append(view.head, view.bar, view.box);

  async function fetchChunk(chunk) {
    const list = await get(`/api/trials?after=${chunk * CHUNK}&limit=${CHUNK}`);
    if (isLeft) return list;
    total = list.num_trials;
    for (const row of list.rows) {
      rows.set(row.position, row);
      positions.set(row.trial_id, row.position);
    }
    stale.delete(chunk);
    told(list);
    return list;
  }

  async function fetchAll() {
    for (let chunk = 0; chunk * CHUNK < total && !isLeft; chunk += 1) {
      if (rows.has(chunk * CHUNK + 1) && !stale.has(chunk)) continue;
      await fetchChunk(chunk);
      arrange();
    }
  }

  // What is shown, and in which order

  function arrange() {
    const needle = filter.query.trim().toLowerCase();
    const kept = [...rows.values()].filter((row) => (!filter.state || row.state === filter.state) && (!filter.phase || row.phase === filter.phase) && (!needle || textOf(row).includes(needle)));
    const { of } = COLUMNS.find((column) => column.key === order.key);
    const turn = order.isDown ? -1 : 1;
    const before = matching[active]?.trial_id;
    matching = kept.sort((one, other) => compare(of(one), of(other), turn) || one.position - other.position);
    active = before ? matching.findIndex((row) => row.trial_id === before) : -1;
    tell();
    draw(true);
  }

  function tell() {
    const loaded = rows.size < total ? `, ${count(rows.size)} fetched so far` : "";
    const shownWords = matching.length === rows.size ? `${count(total)} trials` : `${count(matching.length)} of ${count(total)} trials`;
    view.number.textContent = shownWords + loaded;
    view.table.setAttribute("aria-rowcount", String(matching.length + 1));
    for (const column of COLUMNS) {
      const head = view.heads.get(column.key);
      if (column.key === order.key) head.setAttribute("aria-sort", order.isDown ? "descending" : "ascending");
      else head.removeAttribute("aria-sort");
    }
  }

  // Drawing: a spacer above, the lines in view, a spacer below. Lines that leave the view are filled anew.

  function draw(isNew = false) {
    const { box, body, above, below, none } = view;
    const first = Math.max(0, Math.floor((box.scrollTop - LINE) / LINE) - MARGIN);
    if (!isNew && first === drawnFrom) return;
    if (Math.abs(first - drawnFrom) > MARGIN) stay(first);
    drawnFrom = first;
    const last = Math.min(matching.length, first + Math.ceil(box.clientHeight / LINE) + 2 * MARGIN);
    above.firstChild.style.height = `${first * LINE}px`;
    below.firstChild.style.height = `${(matching.length - last) * LINE}px`;
    above.hidden = first === 0;
    below.hidden = last === matching.length;
    const spare = [...lines].filter(([index]) => index < first || index >= last);
    for (const [index] of spare) lines.delete(index);
    let next = below;
    for (let index = last - 1; index >= first; index -= 1) {
      const line = lines.get(index) ?? spare.pop()?.[1] ?? emptyLine();
      lines.set(index, line);
      fill(line, matching[index], index);
      if (line.element.nextSibling !== next) body.insertBefore(line.element, next);
      next = line.element;
    }
    for (const [, line] of spare) line.element.remove();
    none.hidden = matching.length > 0;
    none.firstChild.textContent = rows.size ? "No trial matches." : "Nothing was planned yet.";
  }

  /** Far from what was drawn every line shows another trial: they are filled anew where they are, not moved. */
  function stay(first) {
    const drawn = [...lines].sort(([one], [other]) => one - other);
    lines.clear();
    for (const [place, [, line]] of drawn.entries()) lines.set(first + place, line);
  }

  function fill(line, row, index) {
    const isActive = index === active;
    if (line.row === row && line.index === index && line.isActive === isActive) return;
    Object.assign(line, { row, index, isActive });
    const { element, cells, told } = line;
    element.id = `row-${row.trial_id}`;
    element.dataset.index = index;
    element.setAttribute("aria-rowindex", index + 2);
    element.setAttribute("aria-selected", String(isActive));
    element.classList.toggle("active", isActive);
    for (const [place, column] of COLUMNS.entries()) {
      const tells = column.tells(row);
      if (told[place] === tells) continue;
      told[place] = tells;
      if (column.fill) column.fill(cells[place], row, tells);
      else say(cells[place], tells);
    }
  }

  function activate(index) {
    if (!matching.length) return;
    active = Math.max(0, Math.min(matching.length - 1, index));
    const top = active * LINE;
    const { box } = view;
    const head = view.table.tHead.offsetHeight;
    if (top < box.scrollTop) box.scrollTop = top;
    else if (top + LINE > box.scrollTop + box.clientHeight - head) box.scrollTop = top + LINE - box.clientHeight + head;
    draw(true);
    view.box.setAttribute("aria-activedescendant", `row-${matching[active].trial_id}`);
    const row = matching[active];
    announce(`${row.trial_id}, ${row.state}, ${row.role}${row.loss === null ? "" : `, loss ${figure(row.loss, "nats/token")}`}`);
  }

  function onKey(event) {
    const pageLines = Math.floor(view.box.clientHeight / LINE) - 2;
    const moves = { ArrowDown: active + 1, ArrowUp: active - 1, PageDown: active + pageLines, PageUp: active - pageLines, Home: 0, End: matching.length - 1 };
    if (event.key in moves) activate(moves[event.key]);
    else if (event.key === "Enter" && active >= 0) open(matching[active].trial_id);
    else return;
    event.preventDefault();
  }

  function onSlash(event) {
    if (event.key !== "/" || event.target.closest("input, textarea, select") || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    view.query.focus();
    view.query.select();
  }

  function remember() {
    const parts = new URLSearchParams();
    for (const [name, value] of Object.entries(filter)) if (value) parts.set(name, value);
    if (order.key !== "position" || order.isDown) parts.set("sort", order.key);
    if (order.isDown) parts.set("down", "1");
    history.replaceState(null, "", parts.size ? `/trials?${parts}` : "/trials");
  }

  function choose(changes) {
    Object.assign(filter, changes);
    view.box.scrollTop = 0;
    active = -1;
    remember();
    arrange();
  }

  function sortBy(key) {
    if (order.key === key) order.isDown = !order.isDown;
    else Object.assign(order, { key, isDown: false });
    remember();
    arrange();
  }

  function build() {
    const number = h("p.note.trial-number", { role: "status" });
    const query = h("input", { type: "search", placeholder: "id, shape, role, stage, agent …", "aria-label": "Search trials", "aria-keyshortcuts": "/", value: filter.query, oninput: debounced(() => choose({ query: query.value }), 60) });
    const select = (name, label, options) =>
      h("label.select", h("span", label), h("select", { onchange: (event) => choose({ [name]: event.target.value }) }, h("option", { value: "" }, "all"), options.map((one) => h("option", { value: one, selected: filter[name] === one }, one))));
    const heads = new Map(
      COLUMNS.map((column) => [
        column.key,
        h("th", { scope: "col", class: classOf(column), title: column.title }, h("button", { type: "button", onclick: () => sortBy(column.key) }, column.name)),
      ]),
    );
    const spacer = () => h("tr.spacer", { "aria-hidden": "true", hidden: true }, h("td", { colspan: COLUMNS.length }));
    const [above, below] = [spacer(), spacer()];
    const none = h("tr.none", { hidden: true }, h("td", { colspan: COLUMNS.length }));
    const body = h("tbody", above, below, none);
    const table = h("table.trial-table", [h("caption.visually-hidden", "Trials"), h("thead", h("tr", [...heads.values()])), body]);
    const box = h("div.trial-box", { tabindex: 0, role: "region", "aria-label": "Trials: arrow keys go from line to line, Enter opens", onkeydown: onKey, onscroll: () => draw() }, table);
    body.addEventListener("click", (event) => {
      const found = event.target.closest("tr[data-index]");
      if (!found || event.target.closest("a") || getSelection().toString()) return;
      open(matching[Number(found.dataset.index)].trial_id);
    });
    const bar = h("div.trial-bar", [
      h("label.search", query, h("kbd", { "aria-hidden": "true" }, "/")),
      select("state", "state", STATES),
      select("phase", "phase", PHASES),
      number,
    ]);
    return { head: pageHead("Trials"), bar, box, table, heads, body, above, below, none, number, query };
  }

  const resizing = new ResizeObserver(() => draw(true));
  document.addEventListener("keydown", onSlash);
  await fetchChunk(0);
  arrange();

  return {
    shown() {
      resizing.observe(view.box);
      draw(true);
      fetchAll().catch(() => {}); // asked for again with the next event
    },
    async refresh() {
      stale.add(chunkOf(Math.max(total, 1))); // new trials come at the end
      await Promise.all([...stale].map(fetchChunk));
      await fetchAll();
      arrange();
    },
    event(fact) {
      const position = positions.get(fact.subject);
      if (position) stale.add(chunkOf(position));
    },
    pulse({ running }) {
      for (const { trial_id: trialId, done_fraction: done } of running) {
        const row = rows.get(positions.get(trialId));
        if (row?.state === "running") rows.set(row.position, { ...row, done_fraction: done });
      }
      arrange();
    },
    destroy() {
      isLeft = true;
      resizing.disconnect();
      document.removeEventListener("keydown", onSlash);
    },
  };
}

/** A line of the list, which `fill` makes show a trial. */
function emptyLine() {
  const cells = COLUMNS.map((column) => h("td", { class: classOf(column) }));
  return { element: h("tr", cells), cells, told: [] };
}

function classOf(column) {
  return [`col-${column.key}`, column.isNumber ? "n" : "", column.optional ? `optional-${column.optional}` : ""].filter(Boolean).join(" ");
}

/** What a row is searched by, in one string. */
function textOf(row) {
  return [row.trial_id, row.shape, row.role, row.stage, row.agent, row.hardware, row.engine, row.state, row.failure_kind].join(" ").toLowerCase();
}

/** Order of two values; what was not measured comes last either way. */
function compare(one, other, turn) {
  if (one === other) return 0;
  if (one === null || one === undefined) return 1;
  if (other === null || other === undefined) return -1;
  return (one < other ? -1 : 1) * turn;
}
