// Trials: all of them, a line each. Only the lines in view exist; filter and order are made here, of what was fetched.

import { get } from "../api.js";
import { announce, debounced, h } from "../dom.js";
import { count, duration, figure, percent, short, words } from "../format.js";
import { pageHead, role, state } from "../parts.js";

const CHUNK = 500; // rows asked for at a time
const LINE = 34; // px; .trial-table tr has the same
const MARGIN = 12; // lines drawn beyond the view on either side
const STATES = ["running", "queued", "succeeded", "failed"];
const PHASES = ["train", "bench"];

const COLUMNS = [
  { key: "position", name: "#", isNumber: true, of: (row) => row.position, cell: (row) => count(row.position) },
  { key: "trial_id", name: "trial", of: (row) => row.trial_id, cell: (row) => h("a", { href: `/trials/${row.trial_id}`, tabindex: -1 }, row.trial_id) },
  { key: "state", name: "state", of: (row) => STATES.indexOf(row.state), cell: (row) => stateCell(row) },
  { key: "role", name: "role", of: (row) => row.role, cell: (row) => role(row.role), optional: 1 },
  { key: "stage", name: "stage", of: (row) => row.stage, cell: (row) => words(row.stage), optional: 3 },
  { key: "shape", name: "shape", of: (row) => row.shape, cell: (row) => h("code", row.shape), optional: 2 },
  { key: "x", name: "x", isNumber: true, of: (row) => row.x, cell: (row) => row.x.toPrecision(3), optional: 3 },
  { key: "r", name: "r", isNumber: true, of: (row) => row.r, cell: (row) => row.r.toPrecision(3), optional: 3 },
  { key: "num_tokens", name: "D", isNumber: true, of: (row) => row.num_tokens, cell: (row) => (row.num_tokens === null ? "" : short(row.num_tokens)), optional: 3, title: "Training tokens" },
  { key: "loss", name: "loss", isNumber: true, of: (row) => row.loss, cell: lossCell, title: "Measured held-out loss, nats/token, ± standard error over windows" },
  { key: "rate", name: "tokens/s", isNumber: true, of: (row) => row.rate, cell: rateCell, optional: 2, title: "Measured: trained by a training run, output of a benchmark" },
  { key: "agent", name: "agent", of: (row) => row.agent, cell: (row) => row.agent ?? "", optional: 2 },
  { key: "spent_seconds", name: "spent", isNumber: true, of: (row) => row.spent_seconds, cell: (row) => (row.spent_seconds ? duration(row.spent_seconds) : ""), optional: 1 },
  { key: "num_attempts", name: "tries", isNumber: true, of: (row) => row.num_attempts, cell: (row) => (row.num_attempts ? String(row.num_attempts) : ""), optional: 3 },
];

function stateCell(row) {
  const note = row.state === "running" ? percent(row.done_fraction) : row.state === "failed" && row.failure_kind ? words(row.failure_kind) : "";
  return [state(row.state), note ? h("small", ` ${note}`) : null];
}

function lossCell(row) {
  if (row.loss === null) return row.phase === "train" ? "" : h("span.absent", { title: "A benchmark has no loss" }, "–");
  return [figure(row.loss, "nats/token"), row.loss_error ? h("small", ` ±${row.loss_error.toFixed(4)}`) : null];
}

function rateCell(row) {
  if (row.rate === null) return "";
  const interval = row.rate_low === null ? null : `${count(row.rate_low)} to ${count(row.rate_high)}`;
  return h("span", { title: interval }, count(row.rate), row.flags.length ? h("span.flag", { title: row.flags.map(words).join(", ") }, " ⚑") : null);
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

  // Drawing: a spacer above, the lines in view, a spacer below

  function draw(isNew = false) {
    const { box, body, above, below } = view;
    const first = Math.max(0, Math.floor((box.scrollTop - LINE) / LINE) - MARGIN);
    if (!isNew && first === drawnFrom) return;
    drawnFrom = first;
    const last = Math.min(matching.length, first + Math.ceil(box.clientHeight / LINE) + 2 * MARGIN);
    above.firstChild.style.height = `${first * LINE}px`;
    below.firstChild.style.height = `${(matching.length - last) * LINE}px`;
    above.hidden = first === 0;
    below.hidden = last === matching.length;
    const lines = matching.slice(first, last).map((row, place) => line(row, first + place));
    body.replaceChildren(above, ...lines, below);
    if (!matching.length) body.append(h("tr.none", h("td", { colspan: COLUMNS.length }, rows.size ? "No trial matches." : "Nothing was planned yet.")));
  }

  function line(row, index) {
    const isActive = index === active;
    return h(
      "tr",
      { id: `row-${row.trial_id}`, "data-index": index, "aria-rowindex": index + 2, "aria-selected": String(isActive), class: isActive ? "active" : "" },
      COLUMNS.map((column) => h("td", { class: classOf(column) }, column.cell(row))),
    );
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
    const body = h("tbody");
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
    return { head: pageHead("Trials"), bar, box, table, heads, body, above, below, number, query };
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
