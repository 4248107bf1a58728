// Recommendation: what to build for each hardware, why, on what evidence, how sure, and what would change it most.

import { get } from "../api.js";
import { h } from "../dom.js";
import { FigureGroup } from "../figures.js";
import { capital, count, moment, percent, short, words } from "../format.js";
import { amount, card, copyButton, facts, inlineAmount, intervals, jsonBlock, missing, pageHead, sentences, shapeFacts, Slots, stat, table, tag, trialLink } from "../parts.js";

export async function mount(root, { told, open }) {
  const slots = new Slots(root);
  const figures = new FigureGroup({ open });

  async function refresh() {
    const page = await get("/api/recommendation");
    told(page);
    slots.show("head", [page.answers.length, page.made_unix, page.no_answer_because], () => head(page));
    for (const answer of page.answers) slots.show(`answer-${answer.hardware}-${answer.engine}-${answer.dtype}`, [answer, page.answers.length], () => section(answer, page.answers.length > 1));
    slots.show("figures", "", () => figures.element);
    figures.show(page.figures);
    slots.show("trust", [page.agreement, page.heldout_error], () => trust(page));
    slots.show("predictions", page.predictions, () => predictions(page.predictions));
    slots.show("caveats", page.caveats, () => (page.caveats.length ? h("section.card.honest", [h("h3", "What this is and is not"), sentences(page.caveats)]) : null));
    slots.show("configs", page.configs, () => configs(page.configs));
    await figures.refresh();
  }

  await refresh();
  return { refresh, destroy: () => figures.destroy() };
}

function head({ answers, made_unix: made, no_answer_because: why }) {
  return [
    pageHead("Recommendation", { lead: made === null ? null : `Given ${moment(made)}.` }),
    answers.length ? null : missing(`No recommendation yet: ${why}`),
  ];
}

function section(answer, isOneOfMany) {
  return h("section.answer", { "aria-label": `The answer for ${answer.hardware}` }, [
    h("p.eyebrow", `${answer.hardware} · ${answer.engine} · ${answer.dtype}`),
    h("h2.headline", answer.headline),
    h("p.sentence", capital(answer.sentence)),
    h("p.verdicts", answer.verdicts.map((one) => h("span.verdict", one))),
    h("div.columns-3", [
      built(answer),
      comparison(answer.loss, answer, 0),
      comparison(answer.throughput, answer, 1),
    ]),
    h("div.columns-2.even", [
      card("Why", answer.why.length ? sentences(answer.why) : missing("No reason was given.")),
      card("How sure", answer.uncertainty.length ? sentences(answer.uncertainty) : h("p", "Nothing is in doubt beyond the intervals above.")),
    ]),
    extraRun(answer),
    h("section.card", [
      h("h3", "Shapes compared"),
      table(
        "Shapes compared",
        [{ name: "shape" }, { name: "x", isNumber: true }, { name: "r", isNumber: true }, { name: "predicted loss", isNumber: true }, { name: "measured loss", isNumber: true }, { name: "output tokens/s", isNumber: true }, { name: "within the limit", isNumber: true, title: "Predicted chance that its loss is at most the baseline's" }],
        answer.shapes.map((one) => [
          [h("code", one.shape.label), one.roles.length ? h("div.roles", one.roles.map((name) => h("span.chip", { class: `chip-${name}` }, words(name)))) : null],
          one.shape.x.toPrecision(3),
          one.shape.r.toPrecision(3),
          inlineAmount(one.predicted_loss),
          inlineAmount(one.measured_loss),
          inlineAmount(one.throughput),
          h("span.inline-amount.predicted", { title: "predicted" }, percent(one.probability_within_limit)),
        ]),
      ),
    ]),
    h("div.columns-2.even", [
      card("Evidence", [
        h("p.note", "The runs that this answer rests on."),
        answer.evidence.length
          ? table("Evidence", [{ name: "run" }, { name: "what" }, { name: "shape" }, { name: "result", isNumber: true }], answer.evidence.map((one) => [trialLink(one.trial_id), one.what, h("code", one.shape), inlineAmount(one.result)]))
          : missing("No run of its own: the answer is predicted."),
      ]),
      card("config.json", [h("p.note", "For transformers' AutoModelForCausalLM.from_config, and for the engines."), jsonBlock("config.json", answer.config)]),
    ]),
  ]);
}

/** What to build: the baseline where the proposal was trained at the target and lost to it. */
function built(answer) {
  const isKept = !answer.stands || answer.is_baseline;
  const shape = isKept ? answer.baseline : answer.recommended;
  return h("section.card", { class: isKept ? "is-baseline" : "is-recommended" }, [
    h("h3", isKept ? "Keep this: the baseline" : `Build this: ${words(answer.role)}`),
    h("p.shape-label", h("code", shape.label)),
    shapeFacts(shape),
    h("p.copy", copyButton(answer.config, "Copy config.json", { isPrimary: true })),
    answer.stands ? null : h("p.refuted", [h("b", "Refuted: "), h("code", answer.recommended.label), ` was proposed as ${answer.role}, trained at the target, and lost.`]),
  ]);
}

function comparison(one, answer, neutral) {
  const proposed = answer.stands ? "recommended" : "proposed, refuted";
  const rows = [
    { name: proposed, amount: one.recommended, colour: answer.stands ? "recommended" : "bad" },
    { name: "baseline", amount: one.baseline, colour: "baseline" },
  ];
  return card(one.title, [
    h("div.pair", [
      h("div", { class: answer.stands ? "pair-recommended" : "pair-refuted" }, [h("div.who", proposed), amount(one.recommended)]),
      answer.is_baseline ? null : h("div.pair-baseline", [h("div.who", `baseline ${answer.baseline.label}`), amount(one.baseline)]),
    ]),
    answer.is_baseline ? null : intervals(rows),
    answer.is_baseline
      ? null
      : h("div.pair-difference", [
          h("div.who", `${one.comparison_name}, ${answer.stands ? "recommended" : "proposed"} to baseline`),
          amount(one.comparison),
          intervals([{ name: one.comparison_name, amount: one.comparison, colour: "ink" }], { neutral }),
        ]),
    one.verdict ? h("p.verdict-line", one.verdict) : null,
  ]);
}

function extraRun(answer) {
  const one = answer.extra_run;
  if (!one) return card("The one extra run that would change it most", missing(capital(answer.no_extra_run_because) || "It cannot be told."));
  return h("section.card.extra-run", [
    h("h3", "The one extra run that would change it most ", tag("predicted")),
    h("p", one.sentence),
    h("div.stats", [
      h("div.stat", [h("div.stat-name", "chance that the answer changes"), h("div.amount", h("div.amount-line", h("span.number", percent(one.probability_of_change)), tag("predicted")))]),
      stat("price", one.price),
      h("div.stat", [
        h("div.stat-name", "the run"),
        facts([
          { name: "shape", value: one.shape.label },
          { name: "x, r", value: `${one.x.toPrecision(3)}, ${one.r.toPrecision(3)}` },
          { name: "N, D", value: `${short(one.num_parameters)}, ${short(one.num_tokens)} tokens` },
        ]),
      ]),
    ]),
    jsonBlock("extra-run.config.json", one.config, { isOpen: false }),
  ]);
}

function trust({ agreement, heldout_error: error }) {
  return h("section.card", [h("h3", "Does the law hold where the answer is?"), h("div.columns-2.even.bare", [stat("error at the target", error), h("div.stat", [h("div.stat-name", "between sizes"), h("p", agreement)])])]);
}

function predictions(list) {
  if (!list.length) return null;
  return h("section.card", [
    h("h3", "On hardware that was not at hand ", tag("predicted")),
    h("p.note", "Uncalibrated roofline bounds: read ratios, not levels. No interval, since the error on these devices was not measured."),
    table(
      "Predictions",
      [{ name: "hardware" }, { name: "shape" }, { name: "roles" }, { name: "batch", isNumber: true }, { name: "effective batch", isNumber: true }, { name: "output tokens/s", isNumber: true }],
      list.map((one) => [one.hardware, h("code", one.shape), one.roles, count(one.batch_size), inlineAmount(one.effective_batch), inlineAmount(one.output_tokens_per_second)]),
    ),
  ]);
}

function configs(list) {
  if (!list.length) return null;
  return h("section.card", [
    h("h3", "All configurations"),
    h("ul.config-list", list.map((one) => h("li", [h("a", { href: `/api/configs/${one.name}`, download: `${one.name}.json` }, one.name), h("code", one.label)]))),
  ]);
}
