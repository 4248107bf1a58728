// Overview: is the run well, how far is it, what has it spent, who works on it, what happened last.

import { get } from "../api.js";
import { h } from "../dom.js";
import { lineOf } from "../events.js";
import { FigureGroup } from "../figures.js";
import { byName, capital, count, duration, percent, plural, words } from "../format.js";
import { card, facts, levelIcon, meter, missing, pageHead, shares, Slots, table, time, trialLink } from "../parts.js";

const MAX_EVENTS = 40;
const AGENT_TONES = { idle: "idle", busy: "accent", draining: "baseline", quarantined: "bad", canary: "front", lost: "bad", stopped: "idle" };
const MANY_AGENTS = 48;

export async function mount(root, { told, open }) {
  const slots = new Slots(root);
  const figures = new FigureGroup({ open, level: 2 });
  let page = null;

  function show(next) {
    page = next;
    slots.show("head", [page.study, page.description, page.state, page.health, page.level], () => head(page));
    slots.show("progress", [page.trials, page.num_expected, page.budget.seconds_left], () => progress(page));
    slots.show("top", "", () => h("div.columns-2.alike"));
    const top = root.querySelector(".columns-2");
    slots.show("answer", [page.law, page.recommendation], () => answer(page), top);
    slots.show("budget", [page.budget, page.state], () => budget(page), top);
    slots.show("health", page.health, () => health(page));
    slots.show("middle", "", () => h("div.columns-2.beside-events"));
    const middle = root.querySelector(".beside-events");
    slots.show("left", "", () => h("div.stack"), middle);
    slots.show("fleet", [page.fleet, agentsShown(page), page.num_lost_agents], () => fleet(page), middle.querySelector(".stack"));
    slots.show("stages", page.stages, () => stages(page), middle.querySelector(".stack"));
    slots.show("failures", [page.failures, page.num_refused_reports], () => failures(page), middle.querySelector(".stack"));
    slots.show("events", page.newest, () => events(page), middle);
    slots.show("figures", "", () => figures.element);
  }

  async function refresh() {
    const next = await get("/api/overview");
    told(next);
    show(page ? { ...next, newest: merged(next.newest, page.newest) } : next);
    await figures.refresh();
  }

  await refresh();
  get("/api/figures").then((all) => figures.show(all.figures.filter((entry) => entry.page === "overview")), () => {});

  return {
    refresh,
    event: (fact) => show({ ...page, seq: fact.seq, newest: merged([lineOf(fact)], page.newest) }),
    pulse: (pulse) => show(pulsed(page, pulse)),
    all: () => figures.all(),
    destroy: () => figures.destroy(),
  };
}

/** Lines of two lists, newest first, each once. */
function merged(newer, older) {
  const bySeq = new Map([...older, ...newer].map((line) => [line.seq, line]));
  return [...bySeq.values()].sort((one, other) => other.seq - one.seq).slice(0, MAX_EVENTS);
}

/** The page with what a pulse tells; the rest waits for the next asking. */
function pulsed(page, pulse) {
  const trials = { ...page.trials };
  for (const name of ["queued", "running", "succeeded", "failed"]) trials[name] = pulse.trials[name] ?? 0;
  trials.total = trials.queued + trials.running + trials.succeeded + trials.failed;
  const held = new Map(pulse.running.map((one) => [one.agent, one]));
  const agents = page.agents.map((agent) => {
    const one = held.get(agent.agent);
    return one && one.trial_id === agent.trial_id ? { ...agent, done_fraction: one.done_fraction } : agent;
  });
  return { ...page, trials, agents };
}

function head(page) {
  return pageHead(page.study, {
    lead: page.description,
    beside: h("div.verdict-big", { class: `level-${page.level}` }, [
      levelIcon(page.level),
      h("div", [h("b", HEADLINES[page.level] ?? words(page.level)), h("span", gravest(page).sentence)]),
    ]),
  });
}

/** What the level rests on: the first line that is as bad as the worst, else how the run is. */
function gravest(page) {
  return (page.level === "ok" ? null : page.health.find((line) => line.level === page.level)) ?? { sentence: page.state_sentence };
}

const HEADLINES = { ok: "All is well", warning: "Needs a look", problem: "Needs help now", unknown: "Not known yet" };

function progress(page) {
  const { trials, num_expected: expected } = page;
  const ended = trials.succeeded + trials.failed;
  const later = Math.max(0, (expected ?? 0) - trials.total);
  const left = page.budget.seconds_left;
  const parts = [
    { name: "succeeded", number: trials.succeeded, tone: "good" },
    { name: "failed", number: trials.failed, tone: "bad" },
    { name: "running", number: trials.running, tone: "running" },
    { name: "queued", number: trials.queued, tone: "idle" },
    { name: "to be planned", number: later, tone: "later" },
  ];
  const isOver = parts.slice(2).every((one) => one.number === 0);
  return h("section.card.progress", { "aria-label": "Progress" }, [
    h("div.progress-head", [
      h("p.progress-count", h("b", count(ended)), ` of ${count(Math.max(expected ?? 0, trials.total))} trials have ended`),
      page.state === "running" && left.text ? h("p.progress-left", "about ", h("b", duration(left.value)), " left ", h("span.tag.predicted", "predicted")) : null,
    ]),
    shares(isOver ? parts.slice(0, 2) : parts, { label: "Trials by state" }),
  ]);
}

function health(page) {
  return card(
    "Health",
    h(
      "ul.health",
      page.health.map((line) =>
        h("li", { class: `level-${line.level}` }, [
          levelIcon(line.level),
          h("div", [h("b", line.name), h("span", line.sentence), line.what_to_do ? h("span.to-do", line.what_to_do) : null]),
        ]),
      ),
    ),
  );
}

function budget(page) {
  const { spent_seconds: spent, granted_seconds: granted, failed_seconds: failed, interrupted_seconds: interrupted, wall_seconds: wall, granted_wall_seconds: wallGranted } = page.budget;
  const tone = (share) => (page.state !== "running" || share < 0.9 ? "accent" : share > 1.1 ? "bad" : "baseline");
  return card("Budget", [
    h("div.budget-row", [
      h("div.budget-line", h("span", "accelerator time"), h("b", duration(spent)), granted === null ? null : h("span", ` of ${duration(granted)}`)),
      granted === null ? h("p.note", "No limit of its own: the wall clock limits this study.") : meter(spent / granted, { label: "Accelerator time spent", tone: tone(spent / granted) }),
    ]),
    h("div.budget-row", [
      h("div.budget-line", h("span", "wall time"), wall === null ? h("span.absent", "not known yet") : h("b", duration(wall)), h("span", ` of ${duration(wallGranted)}`)),
      wall === null ? null : meter(wall / wallGranted, { label: "Wall time used", tone: tone(wall / wallGranted) }),
    ]),
    facts([
      { name: "lost to failures", value: spent > 0 ? `${duration(failed)} (${percent(failed / spent)})` : duration(failed) },
      ...(interrupted > 0 ? [{ name: "interrupted with the run", value: duration(interrupted) }] : []),
      { name: "share of wanted tokens", value: page.budget.token_scale === null ? "" : percent(page.budget.token_scale), note: page.budget.token_scale === null ? "not measured yet" : "" },
    ]),
    page.state === "running" && page.budget.seconds_left.text === "" ? h("p.note", `Time left: ${page.budget.seconds_left.note}.`) : null,
  ]);
}

function answer(page) {
  return card("Answer", [
    page.recommendation.length
      ? [page.recommendation.map((line) => h("p.answer-line", capital(line))), h("p", h("a.more", { href: "/recommendation" }, "Why, and how sure"))]
      : missing("No answer yet: it is given when the last stage has ended."),
    page.law ? h("div.law-line", [h("p", capital(page.law)), h("p", h("a.more", { href: "/study" }, "Figures of the study"))]) : missing("No law yet: nothing was fitted."),
  ]);
}

/** What agents do, without what changes at every heartbeat. */
function agentsShown(page) {
  return page.agents.map(({ agent, hardware, state: now, trial, trial_id, done_fraction, quarantine, canary_deviation }) => [agent, hardware, now, trial, trial_id, done_fraction, quarantine, canary_deviation]);
}

function fleet(page) {
  if (!page.fleet.length) return card("Fleet", missing("No agent has joined yet."));
  return h("section.card", [
    h("h2.card-title", "Fleet"),
    page.fleet.map((kind) => hardware(kind, page.agents.filter((agent) => agent.hardware === kind.hardware).sort(byName))),
    page.num_lost_agents ? h("p.note", `${plural(page.num_lost_agents, "agent")} lost since the run began; the newest are shown.`) : null,
  ]);
}

function hardware(kind, agents) {
  const isMany = agents.length > MANY_AGENTS;
  return h("div.hardware-row", [
    h("div.hardware-head", [
      h("a", { href: `/hardware#${kind.hardware}` }, h("b", kind.name || kind.hardware)),
      h("span.note", [plural(kind.num_agents, "agent"), `${count(kind.num_succeeded)} succeeded`, kind.num_failed_attempts ? plural(kind.num_failed_attempts, "failed attempt") : "", duration(kind.spent_seconds)].filter(Boolean).join(" · ")),
    ]),
    h("div.tiles", { class: isMany ? "many" : "" }, agents.map((agent) => tile(agent, isMany))),
  ]);
}

function tile(agent, isMany) {
  const doing = agent.trial || agent.quarantine || words(agent.state);
  const title = `${agent.agent}: ${words(agent.state)}${agent.trial ? `, ${agent.trial}` : ""}${agent.quarantine ? `, ${agent.quarantine}` : ""}`;
  const share = agent.done_fraction;
  const inside = isMany
    ? []
    : [
        h("span.tile-name", agent.agent),
        h("span.tile-doing", agent.trial_id ? `${doing}` : doing),
        share === null ? null : meter(share, { label: `${agent.agent} done`, tone: "running" }),
      ];
  const classes = `tone-edge-${AGENT_TONES[agent.state] ?? "idle"}`;
  return agent.trial_id
    ? h("a.tile", { class: classes, href: `/trials/${agent.trial_id}`, title, "aria-label": title }, inside)
    : h("span.tile", { class: classes, title, role: "img", "aria-label": title }, inside);
}

function stages(page) {
  if (!page.stages.length) return null;
  return card(
    "Stages",
    h(
      "ul.stages",
      page.stages.map((stage) =>
        h("li", [
          h("a", { href: `/trials?query=${encodeURIComponent(stage.stage)}` }, words(stage.stage)),
          meter(stage.num_trials ? stage.num_ended / stage.num_trials : 0, { label: `${stage.stage} ended`, tone: stage.num_ended === stage.num_trials ? "good" : "running" }),
          h("span.n", stage.num_trials ? `${count(stage.num_ended)} / ${count(stage.num_trials)}` : "no trial"),
        ]),
      ),
    ),
  );
}

function failures(page) {
  if (!page.failures.length && !page.num_refused_reports) return null;
  return card("Failed attempts", [
    page.failures.length
      ? table(
          "Failed attempts",
          [{ name: "kind" }, { name: "phase" }, { name: "hardware" }, { name: "attempts", isNumber: true }, { name: "spent", isNumber: true }],
          page.failures.map((one) => [words(one.kind), one.phase, one.hardware, count(one.num), duration(one.spent_seconds)]),
        )
      : null,
    page.num_refused_reports ? h("p.note", `${plural(page.num_refused_reports, "report")} refused: late, repeated or of an old epoch. That is the coordinator keeping its promises.`) : null,
  ]);
}

function events(page) {
  return h("section.card.events", [
    h("h2.card-title", "Newest events ", h("small", "UTC")),
    page.newest.length
      ? h("ol.event-list", { "aria-label": "Newest events, newest first", tabindex: 0 }, page.newest.map(eventLine))
      : missing("Nothing has happened yet."),
  ]);
}

function eventLine(line) {
  return h("li", { "data-seq": line.seq, class: `kind-${line.kind}` }, [
    time(line.unix),
    h("span.event-kind", line.kind),
    h("span.event-words", line.trial_id ? [trialLink(line.trial_id), " "] : null, line.sentence),
  ]);
}
