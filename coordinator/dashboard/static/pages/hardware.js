// Hardware: what each kind of device can do, how steady its machines are, how noisy its numbers.

import { get } from "../api.js";
import { h } from "../dom.js";
import { FigureGroup } from "../figures.js";
import { ago, byName, count, duration, percent, plural, signedPercent, words } from "../format.js";
import { amount, inlineAmount, levelIcon, missing, pageHead, part, Slots, stat, state, subcard, table, time, trialLink } from "../parts.js";

export async function mount(root, { told, open }) {
  const slots = new Slots(root);
  const groups = new Map(); // hardware, or "" for what is of none -> FigureGroup

  function group(name) {
    if (!groups.has(name)) groups.set(name, new FigureGroup({ open }));
    return groups.get(name);
  }

  async function refresh() {
    const page = await get("/api/hardware");
    told(page);
    slots.show("head", page.training_noise, head);
    for (const kind of page.hardware) {
      group(kind.hardware).show(page.figures.filter((entry) => isOf(entry, kind.hardware)));
      slots.show(`hardware-${kind.hardware}`, { ...kind, canaries: [], agents: kind.agents.map(steady) }, () => hardware(kind, group(kind.hardware)));
    }
    if (!page.hardware.length) slots.show("none", "", () => missing("No hardware yet: no agent has joined."));
    const others = page.figures.filter((entry) => !page.hardware.some((kind) => isOf(entry, kind.hardware)));
    group("").show(others);
    slots.show("others", others.length > 0, (isThere) => (isThere ? part("Hardware that was not at hand", "What a roofline predicts, without a run there.", group("").element) : null));
    await Promise.all([...groups.values()].map((one) => one.refresh()));
  }

  await refresh();
  return {
    refresh,
    all: () => Promise.all([...groups.values()].map((one) => one.all())),
    shown: () => location.hash && document.getElementById(location.hash.slice(1))?.scrollIntoView(),
    destroy: () => groups.forEach((one) => one.destroy()),
  };
}

/** Whether a figure is of one hardware: its name ends so. */
function isOf(entry, name) {
  return entry.name.endsWith(`-${name.toLowerCase().replaceAll(/[^a-z0-9_-]+/g, "-")}`);
}

/** An agent without what changes at every heartbeat. */
function steady({ heartbeat_unix: _heartbeat, clock_offset_seconds: _offset, done_fraction: _done, ...rest }) {
  return rest;
}

function head(noise) {
  return pageHead("Hardware", {
    lead: "What each kind of device can do, how steady its machines are, and how noisy its numbers.",
    beside: stat("noise of one training run, on any hardware", noise, { help: "Standard deviation of the held-out loss over seeds" }),
  });
}

function hardware(kind, figures) {
  return h("section.kind", { id: kind.hardware, "aria-label": kind.name }, [
    h("header.kind-head", [
      h("h2", kind.name || kind.hardware),
      h("p.note", [kind.device, plural(kind.agents.length, "agent"), `${count(kind.num_succeeded)} trials succeeded`, plural(kind.num_failed_attempts, "failed attempt"), `${duration(kind.spent_seconds)} of accelerators`].filter(Boolean).join(" · ")),
    ]),
    subcard("Profile", [kind.profile.length ? profile(kind.profile) : missing("There is no data sheet for this hardware."), h("p.note", kind.profile_note)]),
    h("div.columns-2.even", [noise(kind), canaries(kind.canary_summaries)]),
    figures.element,
    subcard("Agents", kind.agents.length ? agents(kind.agents) : missing("None is here now.")),
    kind.benchmarks.length ? subcard("Newest benchmarks", benchmarks(kind.benchmarks)) : null,
  ]);
}

function noise(kind) {
  const flags = Object.entries(kind.flags).map(([name, number]) => `${number} ${words(name)}`);
  return subcard("Noise floor", [
    kind.noise.length
      ? kind.noise.map((one) => h("div.noise-row", [h("div.who", `${one.engine}, ${plural(one.num_benchmarks, "benchmark")}`), amount(one.variation)]))
      : missing(`${kind.num_benchmarks ? "No benchmark here has repeats" : "No benchmark has ended here yet"}: how far equal measurements differ is not known.`),
    kind.num_benchmarks ? h("p", `${kind.num_valid_benchmarks} of ${plural(kind.num_benchmarks, "benchmark")} valid${flags.length ? `; flagged: ${flags.join(", ")}` : ""}.`) : null,
  ]);
}

function canaries(list) {
  return subcard("Canaries", [
    list.length
      ? table(
          "Canaries by agent",
          [{ name: "" }, { name: "agent" }, { name: "task" }, { name: "canaries", isNumber: true }, { name: "newest", isNumber: true }, { name: "farthest", isNumber: true }, { name: "at" }],
          list.map((one) => [levelIcon(one.level), one.agent, one.kind, one.num, signed(one.newest_deviation), signed(one.largest_deviation), time(one.newest_unix)]),
        )
      : missing("No canary has run here yet."),
  ]);
}

function signed(deviation) {
  return deviation === null ? "no baseline" : signedPercent(deviation, 1);
}

function profile(list) {
  return table(
    "Profile",
    [{ name: "what" }, { name: "value", isNumber: true }, { name: "source" }],
    list.map((one) => [one.name, one.value === null ? h("span.absent", "not known") : [one.text, one.unit && !one.text.endsWith(one.unit) ? h("small", ` ${one.unit}`) : null], one.value === null ? null : h("span.note", one.source)]),
  );
}

function agents(list) {
  return table(
    "Agents",
    [{ name: "agent" }, { name: "state" }, { name: "node" }, { name: "works on" }, { name: "last heard of" }, { name: "clock", isNumber: true, title: "Its wall clock minus the coordinator's" }],
    list.toSorted(byName).map((agent) => [
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
