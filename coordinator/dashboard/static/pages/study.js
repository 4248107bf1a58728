// Study: the law and how far it can be trusted, its figures, and what was asked.

import { get } from "../api.js";
import { h } from "../dom.js";
import { FigureGroup } from "../figures.js";
import { capital, moment, plural, short, signedPercent, words } from "../format.js";
import { card, caveats, facts, inlineAmount, missing, originOf, pageHead, part, plainStat, sentences, Slots, stat, subcard, table } from "../parts.js";

const LARGE_CONDITION = 100;

/** The figures by what they answer; one that no part names is among those of the fit. */
const PARTS = [
  { key: "shape", title: "Which shape is best", lead: "The U-shapes: loss against each of the two ratios, other things equal.", has: (name) => name === "loss-x" || name === "loss-r" },
  { key: "scale", title: "How loss falls with compute and data", lead: "Runs of every size, and the law through the best of each.", has: (name) => name === "loss-compute" || name === "reference" },
  { key: "speed", title: "What speed costs", lead: "Loss against serving throughput, for each hardware and engine.", has: (name) => /^pareto(-|$)/.test(name) },
  { key: "settled", title: "How the answer settled", lead: "The same fit, again with every round of runs.", has: (name) => /^(optima|convergence)-|^condition$|^fit-error$/.test(name) },
];
const FIT = { key: "fit", title: "Can the fit be trusted?", lead: "What the law leaves unexplained, and what it says of itself." };

export async function mount(root, { told, open }) {
  const slots = new Slots(root);
  const groups = new Map([...PARTS, FIT].map(({ key }) => [key, new FigureGroup({ open })]));

  /** A part with its figures and what stands below them, where it has any. */
  function show({ key, title, lead }, entries) {
    const group = groups.get(key);
    group.show(entries);
    slots.show(key, entries.length > 0, (isThere) => (isThere ? part(title, lead, group.element) : null));
  }

  async function refresh() {
    const [page, all] = await Promise.all([get("/api/study"), get("/api/figures")]);
    told(page);
    const { law } = page;
    slots.show("head", [page.study, page.description, law?.sentence, page.no_law_because], () => head(page));
    slots.show("stats", law, () => (law ? stats(law) : null));
    const [shape, scale, speed, settled] = PARTS;
    const entries = all.figures.filter((entry) => entry.page === "study" || speed.has(entry.name)); // fronts are the recommendation's too
    for (const one of [shape, scale, speed]) show(one, entries.filter(({ name }) => one.has(name)));
    show(FIT, entries.filter(({ name }) => !PARTS.some((one) => one.has(name))));
    slots.show("quality", law, () => (law ? quality(law) : null));
    slots.show("held-out", page.held_out, () => heldOut(page.held_out));
    show(settled, entries.filter(({ name }) => settled.has(name)));
    slots.show("caveats", page.caveats, () => (page.caveats.length ? caveats(page.caveats) : null));
    slots.show("asked", [page.settings, page.data], () => h("div.columns-2.even", [card("What is asked", facts(page.settings)), card("What it is asked of", facts(page.data))]));
    await Promise.all([...groups.values()].map((group) => group.refresh()));
  }

  await refresh();
  return {
    refresh,
    all: () => Promise.all([...groups.values()].map((group) => group.all())),
    destroy: () => groups.forEach((group) => group.destroy()),
  };
}

function head({ study, description, law, no_law_because: why }) {
  return [
    pageHead(`Study ${study}`, { lead: description }),
    law ? h("p.sentence", capital(law.sentence)) : missing(`No law yet. ${capital(why)}`),
  ];
}

function stats(law) {
  return h("section.stats", { "aria-label": "The law in numbers" }, [
    stat("x*, the best d / √N", law.x_opt),
    stat("r*, the best MLP / attention", law.r_opt),
    stat("residual of one run", law.residual_sd, { help: "Standard deviation of one run around the law: noise and misfit together" }),
    stat("noise of one run", law.noise_sd, { help: "Standard deviation over seeds, from replicates" }),
    plainStat(
      "condition number",
      law.condition_number === null ? "none" : short(law.condition_number),
      law.condition_number === null ? "nothing was fitted" : law.condition_number > LARGE_CONDITION ? "large: the runs hardly tell the coefficients apart" : "of the design; 1 is ideal",
    ),
    stat("error at the target", law.heldout_error, { help: "Median of |predicted - outcome| / outcome over the shapes trained at the target" }),
  ]);
}

function quality(law) {
  const rows = [
    { name: "form", value: law.form },
    { name: "coefficients", value: law.coefficients.length ? law.coefficients.map((one) => one.toPrecision(4)).join(", ") : "", note: law.coefficients.length ? "a0 a1 a2 b0 b1 b2; only five of six can be told, so the scale is normalised" : "no law was fitted" },
    { name: "L_opt of a cell", value: law.reference },
    { name: "runs", value: `${law.num_runs} fitted, ${law.num_left_out} left out`, note: law.num_left_out ? "outside the law's range of r" : "" },
    { name: "degrees of freedom", value: String(law.degrees_of_freedom) },
    { name: "converged", value: law.converged ? "yes" : "no" },
    { name: "lack of fit", value: law.lack_of_fit_p === null ? "" : `p = ${law.lack_of_fit_p.toPrecision(2)}`, note: law.lack_of_fit },
    { name: "range of x", value: law.x_range.map((one) => one.toPrecision(3)).join(" to ") },
    { name: "range of r", value: law.r_range.map((one) => one.toPrecision(3)).join(" to ") },
    { name: "fits so far", value: Object.entries(law.num_fits).map(([outcome, number]) => `${number} ${words(outcome)}`).join(", ") || "none" },
    { name: "fitted", value: moment(law.fitted_unix) },
  ];
  return h("div.columns-2.even", [
    subcard("How good the fit is", facts(rows)),
    subcard("What the fits say of themselves", [
      law.messages.length ? sentences(law.messages) : h("p", "The fit raised no doubts of its own."),
      h("h4", "Between sizes"),
      h("p", law.agreement),
      law.by_size.length
        ? table(
            "Optima by size",
            [{ name: "N", isNumber: true }, { name: "runs", isNumber: true }, { name: "x*", isNumber: true }, { name: "r*", isNumber: true }],
            law.by_size.map((size) => [short(size.num_parameters), size.num_runs, inlineAmount(size.x_opt, { absent: "none found" }), inlineAmount(size.r_opt, { absent: "none found" })]),
          )
        : null,
    ]),
  ]);
}

function heldOut(rows) {
  if (!rows.length) return null;
  const origin = originOf(rows.map((row) => row.measured));
  return subcard("Held-out check", [
    h("p.note", `Losses in nats/token at the target, which no fit has seen: ${plural(rows.length, "shape")}. Error: predicted over ${origin}, minus one.`),
    table(
      "Held-out check",
      [{ name: "role" }, { name: "shape" }, { name: "predicted", isNumber: true }, { name: origin, isNumber: true }, { name: "error", isNumber: true }],
      rows.map((row) => [row.role, h("code", row.shape.label), inlineAmount(row.predicted), inlineAmount(row.measured), row.error === null ? "no prediction" : signedPercent(row.error, 2)]),
    ),
  ]);
}
