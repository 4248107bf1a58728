// What an event of the stream says in one sentence, as the pages' own lists say it.

import { count, figure, percent, plural, trimmed, words } from "./format.js";

const SENTENCES = {
  planned: (fact) => `Stage ${fact.subject} was planned: ${plural(fact.num_trials, "trial")}.`,
  leased: (fact) => `${fact.agent} took it${fact.epoch > 1 ? `, try ${fact.epoch}` : ""}.`,
  result: (fact) => {
    if (fact.loss !== null) return `Held-out loss ${figure(fact.loss, "nats/token")} nats/token (${fact.agent}).`;
    const rate = fact.output_tokens_per_second;
    return `${rate ? count(rate.value) : "?"} output tokens/s (${fact.agent})${fact.flags.length ? `; ${fact.flags.join(", ")}` : ""}.`;
  },
  failure: (fact) => `An attempt failed, ${words(fact.failure_kind)}: ${fact.message}`,
  refused: (fact) => `A report of ${fact.agent} was refused: ${words(fact.reason)}.`,
  fit: (fact) => {
    const optima = [
      ["x*", fact.x_opt],
      ["r*", fact.r_opt],
    ];
    const told = optima.filter(([, one]) => one).map(([name, one]) => `${name} ${trimmed(one.value, 3)}`);
    return `The law was fitted to ${plural(fact.num_points, "run")}${told.length ? `: ${told.join(", ")}` : ""}.`;
  },
  recommendation: (fact) => `The answer for ${fact.hardware.join(", ")} was given.`,
  canary: (fact) => (fact.deviation === null ? `Canary ${fact.task}: the first of its kind.` : `Canary ${fact.task}: ${percent(fact.deviation)} from its baseline.`),
};
const OF_TRIALS = new Set(["leased", "result", "failure", "refused"]);

/** An event of the stream as a line of a list: {seq, unix, kind, subject, trial_id, sentence}. */
export function lineOf(fact) {
  return {
    seq: fact.seq,
    unix: fact.unix,
    kind: fact.kind,
    subject: fact.subject,
    trial_id: OF_TRIALS.has(fact.kind) && fact.subject ? fact.subject : null,
    sentence: SENTENCES[fact.kind]?.(fact) ?? "",
  };
}
