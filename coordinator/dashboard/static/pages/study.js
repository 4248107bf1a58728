// Study: the law and how far it can be trusted, its figures, and what was asked.

import { get } from "../api.js";
import { h } from "../dom.js";
import { FigureGroup } from "../figures.js";
import { capital, moment, percent, plural, short } from "../format.js";
import { card, facts, inlineAmount, missing, pageHead, plainStat, sentences, Slots, stat, table } from "../parts.js";

const LARGE_CONDITION = 100;
const NUM_LOSSES = 3; // loss against compute, x and r come first

export async function mount(root, { told, open }) {
  const slots = new Slots(root);
  const figures = new FigureGroup({ open });

  async function refresh() {
    const [page, all] = await Promise.all([get("/api/study"), get("/api/figures")]);
    told(page);
    const { law } = page;
    slots.show("head", [page.study, page.description, law?.sentence, page.no_law_because], () => head(page));
    slots.show("stats", law, () => (law ? stats(law) : null));
    slots.show("figures", "", () => figures.element);
    figures.show([...page.figures.slice(0, NUM_LOSSES), ...paretos(all), ...page.figures.slice(NUM_LOSSES)]);
    slots.show("quality", law, () => (law ? quality(law) : null));
    slots.show("held-out", page.held_out, () => heldOut(page.held_out));
    slots.show("caveats", page.caveats, () => (page.caveats.length ? h("section.card.honest", [h("h3", "What this is and is not"), sentences(page.caveats)]) : null));
    slots.show("asked", [page.settings, page.data], () => h("div.columns-2.even", [card("What is asked", facts(page.settings)), card("What it is asked of", facts(page.data))]));
    await figures.refresh();
  }

  await refresh();
  return { refresh, destroy: () => figures.destroy() };
}

/** Pareto fronts belong to the recommendation; the study is where one looks for them too. */
function paretos({ figures }) {
  return figures.filter((entry) => /^pareto(-|$)/.test(entry.name));
}

function head({ study, description, law, no_law_because: why }) {
  return [
    pageHead(`Study ${study}`, { lead: description }),
    law ? h("p.sentence", capital(law.sentence)) : missing(`No law yet: ${why}`),
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
    stat("error at the target", law.heldout_error, { help: "Median of |predicted - measured| / measured over the shapes trained at the target" }),
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
    { name: "fits so far", value: Object.entries(law.num_fits).map(([outcome, number]) => `${number} ${outcome}`).join(", ") || "none" },
    { name: "fitted", value: moment(law.fitted_unix) },
  ];
  return h("div.columns-2.even", [
    card("How good the fit is", facts(rows)),
    card("What the fits say of themselves", [
      law.messages.length ? sentences(law.messages) : h("p", "The fit raised no doubts of its own."),
      h("h4", "Between sizes"),
      h("p", law.agreement),
      law.by_size.length
        ? table(
            "Optima by size",
            [{ name: "N", isNumber: true }, { name: "runs", isNumber: true }, { name: "x*", isNumber: true }, { name: "r*", isNumber: true }],
            law.by_size.map((size) => [short(size.num_parameters), size.num_runs, inlineAmount(size.x_opt), inlineAmount(size.r_opt)]),
          )
        : null,
    ]),
  ]);
}

function heldOut(rows) {
  if (!rows.length) return null;
  return h("section.card", [
    h("h3", "Held-out check"),
    h("p.note", `Losses in nats/token at the target, which no fit has seen: ${plural(rows.length, "shape")}. Error: predicted over measured, minus one.`),
    table(
      "Held-out check",
      [{ name: "role" }, { name: "shape" }, { name: "predicted", isNumber: true }, { name: "measured", isNumber: true }, { name: "error", isNumber: true }],
      rows.map((row) => [row.role, h("code", row.shape.label), inlineAmount(row.predicted), inlineAmount(row.measured), row.error === null ? "no prediction" : percent(row.error, 2)]),
    ),
  ]);
}
