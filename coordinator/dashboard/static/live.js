// What happens, as it happens: durable events in order of their numbers, and the pulse of the run.
//
// The browser resumes a cut stream by itself with Last-Event-ID; where it gives up (the server refused, or was away for
// long) we open a new one after the last number that was seen. A number seen twice is told once.

const KINDS = ["planned", "leased", "result", "failure", "refused", "fit", "recommendation", "canary"];
const FIRST_WAIT = 1000;
const LONGEST_WAIT = 30000;

export class Live {
  /**
   * @param {object} acts `event(fact)`, `pulse(counts)`, `resync(seq)`, `state("live" | "reconnecting" | "ended")`
   */
  constructor(acts) {
    this.acts = acts;
    this.seq = null; // the newest number that was seen
    this.source = null;
    this.wait = FIRST_WAIT;
    this.timer = 0;
    this.isEnded = false;
  }

  /** Open the stream after an event; a stream that is open stays. */
  start(seq) {
    if (this.seq === null) this.seq = seq;
    if (!this.source && !this.timer) this.#open();
  }

  /** The run has ended: what the stream may still bring is told, and the light says so. */
  ended(isEnded) {
    if (this.isEnded === isEnded) return;
    this.isEnded = isEnded;
    if (this.source?.readyState === EventSource.OPEN) this.#tell();
  }

  #open() {
    this.timer = 0;
    this.source = new EventSource(`/api/events?after=${this.seq}`);
    this.source.onopen = () => {
      this.wait = FIRST_WAIT;
      this.#tell();
    };
    this.source.onerror = () => this.#failed();
    for (const kind of KINDS) this.source.addEventListener(kind, (message) => this.#fact(kind, message));
    this.source.addEventListener("pulse", (message) => this.acts.pulse(JSON.parse(message.data)));
    this.source.addEventListener("resync", (message) => {
      const { seq } = JSON.parse(message.data);
      this.seq = seq;
      this.acts.resync(seq);
    });
  }

  #fact(kind, message) {
    const fact = JSON.parse(message.data);
    if (fact.seq <= this.seq) return;
    this.seq = fact.seq;
    this.acts.event({ ...fact, kind });
  }

  #tell() {
    this.acts.state(this.isEnded ? "ended" : "live");
  }

  #failed() {
    this.acts.state("reconnecting");
    if (this.source.readyState !== EventSource.CLOSED) return; // the browser tries again by itself
    this.source.close();
    this.source = null;
    this.timer = setTimeout(() => this.#open(), this.wait * (0.7 + 0.6 * Math.random()));
    this.wait = Math.min(2 * this.wait, LONGEST_WAIT);
  }
}
