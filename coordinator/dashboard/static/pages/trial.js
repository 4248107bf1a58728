// Trial: what it was for, its attempts over time, its raw numbers, and what went wrong.

import { get } from "../api.js";
import { h } from "../dom.js";
import { FigureGroup } from "../figures.js";
import { capital, count, duration, figure, moment, percent, plural, trimmed, words } from "../format.js";
import { card, facts, inlineAmount, jsonBlock, meter, missing, pageHead, role, shapeFacts, Slots, stat, state, table, time } from "../parts.js";
import { Logs } from "../logs.js";

const MAX_WINDOWS = 500;

export async function mount(root, { told, id, open, go }) {
  const slots = new Slots(root);
  const figures = new FigureGroup({ open, level: 2 });
  const logs = new Logs(root);
  let page = null;

  async function refresh() {
    page = await get(`/api/trials/${id}`);
    told(page);
    const { trial } = page;
    slots.show("head", [trial.state, trial.done_fraction, page.previous_id, page.next_id], () => head(page));
    slots.show("numbers", [page.training, page.serving, page.no_numbers_because], () => numbers(page));
    slots.show("what", [trial, page.shape, page.attempts], () =>
      h("div.columns-3", [card("What it was for", purpose(page)), card("Shape", [h("p.shape-label", h("code", page.shape.label)), shapeFacts(page.shape)]), attempts(page)]),
    );
    const withLog = new Set(page.log.map((one) => one.epoch));
    slots.show("failures", page.failures, () => page.failures.map((one) => failure(one, { hasLog: withLog.has(one.epoch) })));
    slots.show("figures", "", () => figures.element);
    figures.showValues(page.figures.filter((one) => one.name !== "attempts" || page.attempts.length > 1)); // one alone is told by the timeline
    logs.keep();
    slots.show("log", [page.log, page.no_log_because], () => logs.card(page));
    logs.scroll();
    slots.show("raw", [page.training, page.serving], () => raw(page));
    slots.show("provenance", page.provenance, () => (page.provenance ? card("Where it was measured", facts(provenance(page.provenance))) : null));
    slots.show("inputs", page.assignment, () => card("Its whole input", [jsonBlock(`${id}.json`, page.assignment, { isOpen: false }), jsonBlock("config.json", page.config, { isOpen: false })]));
  }

  function onKey(event) {
    if (event.target.closest("input, textarea, select, .plot") || event.ctrlKey || event.metaKey || event.altKey) return;
    const next = { j: page?.next_id, k: page?.previous_id }[event.key];
    if (next) go(`/trials/${next}`);
  }

  await refresh();
  document.addEventListener("keydown", onKey);
  return {
    refresh,
    shown: () => logs.scroll(),
    destroy() {
      document.removeEventListener("keydown", onKey);
      figures.destroy();
    },
  };
}

function head({ trial, description, previous_id: previous, next_id: next }) {
  const step = (target, name, key) =>
    target ? h("a.button", { href: `/trials/${target}`, rel: name, title: `${name} trial (key ${key})` }, name) : h("span.button.off", { "aria-disabled": "true" }, name);
  return [
    h("p.crumbs", [h("a", { href: "/trials" }, "Trials"), " / ", h("a", { href: `/trials?query=${encodeURIComponent(trial.stage)}` }, words(trial.stage))]),
    pageHead(h("span.trial-id", trial.trial_id), { lead: description, beside: h("nav.steps", { "aria-label": "Neighbours in planned order" }, [step(previous, "previous", "k"), step(next, "next", "j")]) }),
    h("p.trial-state", [state(trial.state), role(trial.role), trial.flags.map((flag) => h("span.chip.chip-warning", words(flag))), trial.state === "running" ? [meter(trial.done_fraction, { label: "done", tone: "running" }), h("span.note", percent(trial.done_fraction))] : null]),
  ];
}

function numbers({ training, serving, no_numbers_because: why }) {
  if (training) {
    return h("section.stats", [
      stat("held-out loss", training.loss),
      stat("training speed", training.tokens_per_second),
      h("div.stat", [
        h("div.stat-name", "trained"),
        facts([
          { name: "tokens", value: count(training.num_tokens), note: training.inherited_tokens ? `${count(training.inherited_tokens)} of them by a shared trunk` : "" },
          { name: "time", value: duration(training.train_seconds) },
          { name: "resumed", value: training.num_resumes ? plural(training.num_resumes, "time") : "never" },
          { name: "devices", value: training.strategy ? `${training.num_devices}, ${training.strategy}` : String(training.num_devices) },
        ]),
      ]),
    ]);
  }
  if (serving) {
    return h("section.stats", [
      stat("output rate", serving.output_tokens_per_second),
      stat("rate of input and output together", serving.total_tokens_per_second),
      h("div.stat", [
        h("div.stat-name", "workload"),
        facts([
          { name: "engine", value: `${serving.engine} ${serving.engine_version}, ${serving.dtype}` },
          { name: "batch", value: plural(serving.batch_size, "sequence") },
          { name: "tokens in, out", value: `${count(serving.input_tokens)}, ${count(serving.output_tokens)}` },
          { name: "variation", value: percent(serving.coefficient_of_variation, 1), note: "sd over mean of the repeats" },
          { name: "valid", value: serving.is_valid ? "yes" : "no", note: serving.flags.map(words).join(", ") },
        ]),
      ]),
    ]);
  }
  return missing(`No numbers. ${capital(why)}`);
}

function purpose({ trial }) {
  return [
    h("p", capital(trial.reason)),
    facts([
      { name: "place in the plan", value: `${trial.position}, stage ${trial.stage}` },
      { name: "phase", value: trial.phase },
      ...(trial.num_tokens === null ? [] : [{ name: "tokens, D", value: count(trial.num_tokens) }]),
      ...(trial.seed === null ? [] : [{ name: "seed", value: String(trial.seed) }]),
      { name: "hardware", value: trial.hardware ?? "", note: trial.hardware ? "" : "any will do" },
      { name: "attempts", value: String(trial.num_attempts), note: `${duration(trial.spent_seconds)} of accelerators in ended ones` },
    ]),
  ];
}

function attempts({ attempts: list, trial }) {
  if (!list.length) return card("Timeline", missing(`It has waited since ${moment(trial.queued_unix)}: no agent has taken it yet.`));
  return card("Timeline", [
    h("ol.timeline", [
      h("li.kind-planned", [time(trial.queued_unix), h("span", "queued")]),
      list.map((one) => [
        h("li.kind-leased", [time(one.leased_unix), h("span", [`taken by ${one.agent} on ${one.hardware}`, one.epoch > 1 ? `, try ${one.epoch}` : ""])]),
        one.ended_unix === null
          ? h("li.kind-running", [h("time", "now"), h("span", `running, ${percent(trial.done_fraction)} done`)])
          : h("li", { class: one.outcome === "succeeded" ? "kind-result" : "kind-failure" }, [
              time(one.ended_unix),
              h("span", [words(one.outcome), one.failure_kind ? `: ${words(one.failure_kind)}` : "", one.spent_seconds === null ? "" : ` after ${duration(one.spent_seconds)}`]),
            ]),
      ]),
    ]),
  ]);
}

function failure(one, { hasLog }) {
  return h("section.card.failure", [
    h("h2.card-title", `Try ${one.epoch} failed: ${words(one.kind)}`),
    h("p", one.message),
    h("p.note", [moment(one.unix), ` · ${one.provenance.agent} on ${one.provenance.hostname}`]),
    hasLog ? null : one.log_tail ? h("pre.log", { tabindex: 0, "aria-label": "The last lines of its log" }, one.log_tail) : h("p.note", "It left no log: the agent could not send any."),
  ]);
}

function raw({ training, serving }) {
  if (training) return card("Raw numbers", [curve(training.curve), windows(training.window_losses)]);
  if (!serving) return null;
  return card("Raw numbers", [
    h("h3.small-title", "Repeats"),
    table(
      "Repeats",
      [{ name: "repeat", isNumber: true }, { name: "output tokens/s", isNumber: true }, { name: "time", isNumber: true }, { name: "output tokens", isNumber: true }, { name: "processor time", isNumber: true }, { name: "energy", isNumber: true }, { name: "SM clock", isNumber: true }],
      serving.repeats.map((one, place) => [place + 1, figure(one.output_tokens_per_second, "tokens/s"), `${trimmed(one.seconds, 4)} s`, count(one.num_output_tokens), maybe(one.processor_seconds, "s"), maybe(one.joules, "J"), maybe(one.sm_clock_mhz, "MHz")]),
    ),
    h("h3.small-title", "Latencies"),
    serving.latencies.length
      ? table("Latencies", [{ name: "latency" }, { name: "p50 (s)", isNumber: true }, { name: "p90 (s)", isNumber: true }, { name: "p99 (s)", isNumber: true }], serving.latencies.map((one) => [one.name, inlineAmount(one.p50), inlineAmount(one.p90), inlineAmount(one.p99)]))
      : h("p.note", "None were measured."),
    h("h3.small-title", "Memory and energy"),
    h("div.stats.bare", [
      stat("running sequences", serving.mean_running_sequences),
      stat("energy of an output token", serving.joules_per_output_token),
      stat("KV cache", serving.kv_cache_tokens),
    ]),
    h("p.note", serving.num_preemptions === null ? "The engine does not tell its preemptions." : plural(serving.num_preemptions, "preemption")),
  ]);
}

function maybe(value, unit) {
  return value === null ? h("span.absent", "not measured") : `${trimmed(value, 4)} ${unit}`;
}

function curve(points) {
  if (!points.length) return h("p.note", "No point of the training curve was kept.");
  return h("details", [
    h("summary", `Training curve, ${plural(points.length, "point")}`),
    table(
      "Training curve",
      [{ name: "tokens", isNumber: true }, { name: "training loss (nats/token)", isNumber: true }, { name: "learning rate", isNumber: true }, { name: "gradient norm", isNumber: true }],
      points.map((one) => [count(one.num_tokens), figure(one.loss, "nats/token"), trimmed(one.learning_rate, 3), trimmed(one.gradient_norm, 3)]),
    ),
  ]);
}

function windows(losses) {
  if (!losses.length) return h("p.note", "The losses of single windows were not kept.");
  return h("details", [
    h("summary", `Held-out windows, ${count(losses.length)}`),
    h("p.note", "Mean loss of each window in nats/token, in the corpus' fixed order: windows of two trials can be paired."),
    h("ol.windows", losses.slice(0, MAX_WINDOWS).map((loss) => h("li", loss.toFixed(4)))),
    losses.length > MAX_WINDOWS ? h("p.note", `The first ${MAX_WINDOWS}; the JSON route has all.`) : null,
  ]);
}

function provenance(one) {
  return [
    { name: "agent", value: one.agent },
    { name: "host", value: one.hostname },
    { name: "device", value: `${one.device} (${one.hardware})` },
    { name: "began", value: moment(one.started_at_unix) },
    { name: "took", value: duration(one.seconds) },
    { name: "versions", value: Object.entries(one.versions).map(([name, version]) => `${name} ${version}`).join(", ") },
  ];
}
