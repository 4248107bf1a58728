// What an event of the stream says in one sentence, as the pages' own lists say it.

import { count, figure, plural, signedPercent, trimmed, words } from "./format.js";

const SENTENCES = {
  planned: (fact) => `${plural(fact.num_trials, "trial")} planned: ${fact.subject}`,
  leased: (fact) => `handed to ${fact.agent} (${fact.hardware})`,
  result: (fact) => {
    if (fact.loss !== null) return `loss ${figure(fact.loss, "nats/token")} nats/token (${fact.hardware})`;
    const rate = fact.output_tokens_per_second;
    const doubts = fact.flags.length ? `; ${fact.flags.join(", ")}` : "";
    return `${rate ? `${count(rate.value)} output tokens/s (${fact.hardware})` : "no rate"}${doubts}`;
  },
  failure: (fact) => `${fact.failure_kind} on ${fact.agent}: ${fact.message}`,
  refused: (fact) => `report of ${fact.agent} refused: ${words(fact.reason)}`,
  fit: (fact) => {
    const told = Object.entries({ "x*": fact.x_opt, "r*": fact.r_opt }).map(([name, one]) => (one ? `${name} ${trimmed(one.value, 3)} [${trimmed(one.low, 3)}, ${trimmed(one.high, 3)}]` : `no ${name}`));
    return `law from ${plural(fact.num_points, "run")}: ${told.join(", ")}`;
  },
  recommendation: (fact) => `recommendation for ${fact.hardware.join(", ")}`,
  canary: (fact) => `canary ${fact.task}: ${fact.deviation === null ? "baseline is being made" : `${signedPercent(fact.deviation, 1)} of its baseline`} (${fact.hardware})`,
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
