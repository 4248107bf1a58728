// Hardware: what each kind of device can do, how steady its machines are, how noisy its numbers.

import { get } from "../api.js";
import { h } from "../dom.js";
import { FigureGroup } from "../figures.js";
import { ago, count, duration, percent, plural, words } from "../format.js";
import { amount, card, facts, inlineAmount, levelIcon, missing, pageHead, Slots, stat, state, table, time, trialLink } from "../parts.js";
import { of } from "./overview.js";

const DRIFT = 0.05; // the alert's limit
const SERIES_COLOURS = ["scale-1", "scale-5", "scale-3", "scale-4", "scale-2", "law", "recommended", "baseline"];

export async function mount(root, { told, open }) {
  const slots = new Slots(root);
  const figures = new FigureGroup({ open });
  const canaries = new Map(); // hardware -> FigureGroup

  async function refresh() {
    const [page, all] = await Promise.all([get("/api/hardware"), get("/api/figures")]);
    told(page);
    slots.show("head", page.hardware.length, () => pageHead("Hardware", { lead: "What each kind of device can do, how steady its machines are, and how noisy its numbers." }));
    slots.show("noise", [page.training_noise, page.notes], () =>
      h("section.stats", [stat("noise of one training run", page.training_noise, { help: "Standard deviation of the held-out loss over seeds" })], page.notes.length ? card("", facts(page.notes)) : null),
    );
    for (const kind of page.hardware) {
      if (!canaries.has(kind.hardware)) canaries.set(kind.hardware, new FigureGroup({ open }));
      const chart = canaries.get(kind.hardware);
      slots.show(`hardware-${kind.hardware}`, { ...kind, agents: kind.agents.map(steady) }, () => hardware(kind, chart));
      if (kind.canaries.length) chart.showValues([canaryFigure(kind)]);
    }
    if (!page.hardware.length) slots.show("none", "", () => missing("No hardware yet: no agent has joined."));
    slots.show("figures", "", () => figures.element);
    figures.show(of(all, "hardware"));
    await figures.refresh();
  }

  await refresh();
  return {
    refresh,
    shown: () => location.hash && document.getElementById(location.hash.slice(1))?.scrollIntoView(),
    destroy: () => [figures, ...canaries.values()].forEach((one) => one.destroy()),
  };
}

/** An agent without what changes at every heartbeat. */
function steady({ heartbeat_unix: _heartbeat, clock_offset_seconds: _offset, done_fraction: _done, ...rest }) {
  return rest;
}

function hardware(kind, chart) {
  const flags = Object.entries(kind.flags).map(([name, number]) => `${number} ${words(name)}`);
  return h("section.kind", { id: kind.hardware, "aria-label": kind.name }, [
    h("header.kind-head", [
      h("h2", kind.name || kind.hardware),
      h("p.note", [kind.device, plural(kind.agents.length, "agent"), `${count(kind.num_succeeded)} trials succeeded`, plural(kind.num_failed_attempts, "failed attempt"), `${duration(kind.spent_seconds)} of accelerators`].filter(Boolean).join(" · ")),
    ]),
    h("div.columns-2.even", [
      card("Profile", [
        kind.profile.length ? profile(kind.profile) : missing("There is no data sheet for this hardware."),
        h("p.note", kind.profile_note),
      ]),
      card("Noise floor", [
        kind.noise.length
          ? kind.noise.map((one) => h("div.noise-row", [h("div.who", `${one.engine}, ${plural(one.num_benchmarks, "benchmark")}`), amount(one.variation)]))
          : missing("No benchmark has ended here yet: how far equal measurements differ is not known."),
        h("h4", "Benchmarks"),
        kind.num_benchmarks
          ? h("p", `${kind.num_valid_benchmarks} of ${kind.num_benchmarks} valid${flags.length ? `; flagged: ${flags.join(", ")}` : ""}.`)
          : h("p.note", "None yet."),
      ]),
    ]),
    h("section.card", [
      h("h3", "Canaries"),
      kind.canary_summaries.length
        ? [
            table(
              "Canaries by agent",
              [{ name: "" }, { name: "agent" }, { name: "task" }, { name: "canaries", isNumber: true }, { name: "newest", isNumber: true }, { name: "farthest", isNumber: true }, { name: "at" }],
              kind.canary_summaries.map((one) => [levelIcon(one.level), one.agent, one.kind, one.num, signed(one.newest_deviation), signed(one.largest_deviation), time(one.newest_unix)]),
            ),
          ]
        : missing("No canary has run here yet."),
      chart.element,
    ]),
    h("section.card", [h("h3", "Agents"), kind.agents.length ? agents(kind.agents) : missing("None is here now.")]),
    kind.benchmarks.length ? h("section.card", [h("h3", "Newest benchmarks"), benchmarks(kind.benchmarks)]) : null,
  ]);
}

function signed(deviation) {
  return deviation === null ? "no baseline" : `${deviation > 0 ? "+" : ""}${percent(deviation, 1)}`;
}

function profile(list) {
  return table(
    "Profile",
    [{ name: "what" }, { name: "value", isNumber: true }, { name: "source" }],
    list.map((one) => [one.name, one.value === null ? h("span.absent", "not known") : [one.text, one.unit && !one.text.endsWith(one.unit) ? h("small", ` ${one.unit}`) : null], h("span.note", one.source)]),
  );
}

function agents(list) {
  return table(
    "Agents",
    [{ name: "agent" }, { name: "state" }, { name: "node" }, { name: "works on" }, { name: "last heard of" }, { name: "clock", isNumber: true, title: "Its wall clock minus the coordinator's" }],
    list.map((agent) => [
      agent.agent,
      [state(agent.state), agent.quarantine ? h("div.note", agent.quarantine) : null],
      agent.node,
      agent.trial_id ? trialLink(agent.trial_id, agent.trial || agent.trial_id) : "",
      h("span", { title: ago(agent.heartbeat_unix) }, time(agent.heartbeat_unix)),
      agent.clock_offset_seconds === null ? h("span.absent", "not asked") : `${agent.clock_offset_seconds.toFixed(3)} s`,
    ]),
  );
}

function benchmarks(list) {
  return table(
    "Newest benchmarks",
    [{ name: "trial" }, { name: "shape" }, { name: "engine" }, { name: "batch", isNumber: true }, { name: "output tokens/s", isNumber: true }, { name: "variation", isNumber: true }, { name: "doubts" }],
    list.map((one) => [trialLink(one.trial_id), h("code", one.shape), one.engine, one.batch_size, inlineAmount(one.rate), percent(one.variation, 1), one.flags.length ? one.flags.map(words).join(", ") : one.is_valid ? "none" : "not valid"]),
  );
}

/** Deviations over time, a colour for each agent. */
function canaryFigure({ hardware: name, canaries }) {
  const since = canaries[0].unix;
  const length = canaries.at(-1).unix - since;
  const [unit, scale] = length > 4 * 3600 ? ["h", 3600] : length > 180 ? ["min", 60] : ["s", 1];
  const known = canaries.filter((one) => one.deviation !== null);
  const agents = [...new Set(known.map((one) => one.agent))];
  const series = agents.map((agent, place) => {
    const own = known.filter((one) => one.agent === agent);
    return {
      name: agents.length <= SERIES_COLOURS.length ? agent : "",
      kind: "measured",
      mark: "dot",
      colour: SERIES_COLOURS[place % SERIES_COLOURS.length],
      dashed: false,
      x: own.map((one) => (one.unix - since) / scale),
      y: own.map((one) => 100 * one.deviation),
      x_interval: [],
      y_interval: [],
      labels: own.map((one) => `${one.agent}, ${one.kind}`),
      show_labels: false,
      trial_ids: [],
    };
  });
  return {
    name: `canary-${name}`,
    title: "Canaries over time",
    caption: `Rate of a fixed task over the baseline of this hardware, minus 1, from the first canary shown. Beyond ±${percent(DRIFT)} a machine has drifted. One pass each, so no interval.`,
    x: { label: "time", unit, scale: "linear", low: null, high: null, categories: [] },
    y: { label: "deviation", unit: "%", scale: "linear", low: null, high: null, categories: [] },
    series,
    guides: [{ axis: "y", low: -100 * DRIFT, high: 100 * DRIFT, colour: "soft", dashed: false, name: `within ${percent(DRIFT)}` }],
    reason: known.length ? "" : "no canary had a baseline yet.",
    is_wide: true,
  };
}
