// What the attempts of a trial said: the newest is open and follows its end, unless somebody reads further up.

import { h } from "./dom.js";
import { card } from "./parts.js";

const NEAR_END = 24; // px

export class Logs {
  constructor(root) {
    this.root = root;
    this.read = new Map(); // epoch -> where somebody reads, px
  }

  /** The logs of a trial's page: {log: [{epoch, agent, text, is_whole}], no_log_because}. */
  card({ log, no_log_because: why }) {
    if (!log.length) return why ? card("Log", h("p.note", why)) : null;
    const newest = log.at(-1).epoch;
    return card(
      "Log",
      log.map((one) => this.#attempt(one, { isOpen: one.epoch === newest })),
    );
  }

  /** Remember where somebody reads, before the card is drawn anew. */
  keep() {
    this.read = new Map(this.#texts().filter((text) => !isAtEnd(text)).map((text) => [text.dataset.epoch, text.scrollTop]));
  }

  /** Back to there; all others to their end. */
  scroll() {
    for (const text of this.#texts()) text.scrollTop = this.read.get(text.dataset.epoch) ?? text.scrollHeight;
  }

  #texts() {
    return [...this.root.querySelectorAll(".attempt-log")];
  }

  #attempt({ epoch, agent, text, is_whole: isWhole }, { isOpen }) {
    const name = `Try ${epoch} on ${agent}`;
    return h("details.json", { open: isOpen, ontoggle: () => this.scroll() }, [
      h("summary", name),
      isWhole ? null : h("p.note", "Its last lines; earlier ones were left out."),
      h("pre.log.attempt-log", { tabindex: 0, role: "log", "aria-live": "off", "aria-label": `Log of ${name.toLowerCase()}`, "data-epoch": epoch }, text),
    ]);
  }
}

function isAtEnd(text) {
  return text.scrollHeight - text.scrollTop - text.clientHeight < NEAR_END;
}
