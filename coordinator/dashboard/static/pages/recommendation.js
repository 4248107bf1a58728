// Recommendation: what to build for each hardware, why, on what evidence, how sure, and what would change it most.

import { get } from "../api.js";
import { h } from "../dom.js";
import { FigureGroup } from "../figures.js";
import { capital, count, moment, percent, short, words } from "../format.js";
import { amount, card, caveats, copyButton, facts, inlineAmount, intervals, jsonBlock, missing, originOf, pageHead, sentences, Slots, stat, subcard, table, tag, trialLink } from "../parts.js";

const SHAPE_ROWS = [
  ["N (non-embedding)", (shape) => short(shape.num_parameters)],
  ["x = d / √N", (shape) => shape.x.toPrecision(3)],
  ["r = MLP / attention", (shape) => shape.r.toPrecision(3)],
  ["layers", (shape) => shape.num_hidden_layers],
  ["hidden size, d", (shape) => shape.hidden_size],
  ["intermediate size", (shape) => shape.intermediate_size],
  ["query heads", (shape) => shape.num_attention_heads],
  ["key-value heads", (shape) => shape.num_key_value_heads],
  ["head size", (shape) => shape.head_dim],
];

export async function mount(root, { told, open }) {
  const slots = new Slots(root);
  const figures = new FigureGroup({ open, level: 2 });

  async function refresh() {
    const page = await get("/api/recommendation");
    told(page);
    slots.show("head", [page.answers.length, page.made_unix, page.no_answer_because], () => head(page));
    for (const answer of page.answers) slots.show(`answer-${answer.hardware}-${answer.engine}-${answer.dtype}`, answer, () => section(answer));
    slots.show("figures", "", () => figures.element);
    figures.show(page.figures);
    slots.show("trust", [page.agreement, page.heldout_error, page.answers.length], () => (page.answers.length ? trust(page) : null));
    slots.show("predictions", [page.predictions, page.answers.map((one) => one.stands)], () => predictions(page));
    slots.show("caveats", page.caveats, () => (page.caveats.length ? caveats(page.caveats) : null));
    slots.show("configs", page.configs, () => configs(page.configs));
    await figures.refresh();
  }

  await refresh();
  return { refresh, all: () => figures.all(), destroy: () => figures.destroy() };
}

function head({ answers, made_unix: made, no_answer_because: why }) {
  return [
    pageHead("Recommendation", { lead: made === null ? null : `Given ${moment(made)}.` }),
    answers.length ? null : missing(`No recommendation yet. ${capital(why)}`),
  ];
}

function section(answer) {
  const why = subcard("Why", answer.why.length ? sentences(answer.why) : missing("No reason was given."));
  const sure = subcard("How sure", answer.uncertainty.length ? sentences(answer.uncertainty) : h("p", "Nothing is in doubt beyond the intervals above."));
  return h("section.answer", { "aria-label": `The answer for ${answer.hardware}` }, [
    h("header.answer-head", [
      h("div", [h("p.eyebrow", `${answer.hardware} · ${answer.engine} · ${answer.dtype}`), h("h2.headline", answer.headline), h("p.sentence", capital(answer.sentence))]),
      h("ul.verdicts", { "aria-label": "In a few words" }, answer.verdicts.map((one, place) => h("li.verdict", { class: place === 0 && !answer.stands ? "bad" : "" }, one))),
    ]),
    answer.is_baseline
      ? h("div.columns-2.even", [built(answer), h("div.stack", [comparison(answer.loss, answer, 0), comparison(answer.throughput, answer, 1)])])
      : h("div.columns-3", [built(answer), comparison(answer.loss, answer, 0), comparison(answer.throughput, answer, 1)]),
    h("div.columns-2.even", [why, sure]),
    extraRun(answer),
    compared(answer),
    h("div.columns-2.even", [
      evidence(answer),
      subcard("config.json", [h("p.note", "For transformers' AutoModelForCausalLM.from_config, and for the engines."), jsonBlock("config.json", answer.config)]),
    ]),
  ]);
}

function compared(answer) {
  return subcard(
    "Shapes compared",
    table(
      "Shapes compared",
      [
        { name: "shape" },
        { name: "x", isNumber: true },
        { name: "r", isNumber: true },
        { name: "predicted loss", isNumber: true },
        { name: `${originOf(answer.shapes.map((one) => one.measured_loss))} loss`, isNumber: true },
        { name: "output tokens/s", isNumber: true },
        { name: "within the limit", isNumber: true, title: "Predicted chance that its loss is at most the baseline's" },
      ],
      answer.shapes.map((one) => [
        [h("code", one.shape.label), chips(rolesOf(one, answer))],
        one.shape.x.toPrecision(3),
        one.shape.r.toPrecision(3),
        inlineAmount(one.predicted_loss),
        inlineAmount(one.measured_loss),
        inlineAmount(one.throughput),
        h("span.inline-amount.predicted", { title: "predicted" }, percent(one.probability_within_limit)),
      ]),
    ),
  );
}

function evidence({ evidence: runs }) {
  return subcard("Evidence", [
    h("p.note", "The runs that this answer rests on."),
    runs.length
      ? table(
          "Evidence",
          [{ name: "run" }, { name: "what" }, { name: "shape" }, { name: "result", isNumber: true }],
          runs.map((one) => [trialLink(one.trial_id), one.what, h("code", one.shape), inlineAmount(one.result)]),
        )
      : missing("No run of its own: the answer is predicted."),
  ]);
}

/** The roles of a shape in an answer; a proposal that was refuted is called so first. */
function rolesOf({ roles, shape }, { stands, recommended }) {
  return stands || shape.label !== recommended.label ? roles : ["refuted", ...roles];
}

function chips(roles) {
  return roles.length ? h("div.roles", roles.map((name) => h("span.chip", { class: `chip-${name}` }, words(name)))) : null;
}

/** What to build: the baseline where the proposal was trained at the target and lost to it. */
function built(answer) {
  const isKept = !answer.stands || answer.is_baseline;
  const shape = isKept ? answer.baseline : answer.recommended;
  const other = answer.is_baseline ? null : isKept ? { name: "refuted", shape: answer.recommended } : { name: "baseline", shape: answer.baseline };
  return h("section.card", { class: isKept ? "is-baseline" : "is-recommended" }, [
    h("h3.card-title", isKept ? "Keep this: the baseline" : `Build this: ${words(answer.role)}`),
    h("p.shape-label", h("code", shape.label)),
    table(
      "The shape",
      [{ name: "" }, { name: "this", isNumber: true }, ...(other ? [{ name: other.name, isNumber: true }] : [])],
      SHAPE_ROWS.map(([name, of]) => [h("span.c-soft", name), h("b", of(shape)), ...(other ? [of(other.shape)] : [])]),
    ),
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
  return subcard(one.title, [
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
  if (!one) return h("section.card.line", [h("h3.card-title", "The one extra run that would change it most"), h("p", capital(answer.no_extra_run_because) || "It cannot be told.")]);
  return h("section.card.extra-run", [
    h("h3.card-title", "The one extra run that would change it most ", tag("predicted")),
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
  return card("Does the law hold where the answer is?", h("div.columns-2.even.bare", [stat("error at the target", error), h("div.stat", [h("div.stat-name", "between sizes"), h("p", agreement)])]));
}

/** One line a shape and hardware, one column a batch; below each value its ratio to the baseline's. */
function predictions({ predictions: list, answers }) {
  if (!list.length) return null;
  const refuted = new Set(answers.filter((one) => !one.stands).map((one) => one.recommended.label));
  const batches = [...new Set(list.map((one) => one.batch_size))].sort((one, other) => one - other);
  const lines = Map.groupBy(list, (one) => `${one.hardware} ${one.shape}`);
  const rateOf = (one) => one?.output_tokens_per_second.value ?? null;
  const baseline = (one) => list.find((other) => other.roles.includes("baseline") && other.hardware === one.hardware && other.batch_size === one.batch_size);
  return h("section.card", [
    h("h2.card-title", "On hardware that was not at hand ", tag("predicted")),
    h("p.note", "Output tokens/s by batch, and the ratio to the baseline. Uncalibrated roofline bounds: read ratios, not levels. No interval, since the error on these devices was not measured."),
    table(
      "Predicted output tokens/s by batch size",
      [{ name: "hardware" }, { name: "shape" }, { name: "role" }, ...batches.map((size) => ({ name: `batch ${count(size)}`, isNumber: true }))],
      [...lines.values()].map((line) => [
        line[0].hardware,
        h("code", line[0].shape),
        refuted.has(line[0].shape) ? line[0].roles.replace("recommended", "refuted") : line[0].roles,
        ...batches.map((size) => predicted(line.find((one) => one.batch_size === size), { rateOf, baseline })),
      ]),
    ),
  ]);
}

function predicted(one, { rateOf, baseline }) {
  const rate = rateOf(one);
  if (rate === null) return h("span.absent", { title: one?.output_tokens_per_second.note }, "none");
  const reference = rateOf(baseline(one));
  const fits = one.effective_batch.value;
  return [
    h("span.inline-amount.predicted", { title: `${one.output_tokens_per_second.text} tokens/s, predicted` }, short(rate)),
    reference === null || one.roles.includes("baseline") ? null : h("small", ` ${(rate / reference).toFixed(2)}×`),
    fits !== null && fits < one.batch_size ? h("div.note", `${count(fits)} fit`) : null,
  ];
}

function configs(list) {
  if (!list.length) return null;
  return card(
    "All configurations",
    h("ul.config-list", list.map((one) => h("li", [h("a", { href: `/api/configs/${one.name}`, download: `${one.name}.json` }, one.name), h("code", one.label)]))),
  );
}
