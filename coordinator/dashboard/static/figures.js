// The figures of a page: fetched when they come into view, drawn anew only where they changed.

import { get } from "./api.js";
import { h } from "./dom.js";

let drawing = null; // uPlot is loaded when the first figure is wanted

export class FigureGroup {
  /**
   * @param {object} acts `open(trialId)`
   */
  constructor({ open }) {
    this.open = open;
    this.cards = new Map(); // name -> {place, card, isSeen}
    this.element = h("section.figures", { "aria-label": "Figures" });
    this.watcher = new IntersectionObserver((entries) => this.#seen(entries), { rootMargin: "300px" });
  }

  /** Show these figures by name, in this order. `entries`: {name, title, is_wide}. */
  show(entries) {
    for (const entry of entries) {
      if (this.cards.has(entry.name)) continue;
      const place = h("div.figure-place", { class: entry.is_wide ? "wide" : "", "data-name": entry.name, "aria-label": entry.title });
      this.cards.set(entry.name, { place, card: null, isSeen: false });
      this.element.append(place);
      this.watcher.observe(place);
    }
    const names = new Set(entries.map((entry) => entry.name));
    for (const [name, { place, card }] of this.cards) {
      if (names.has(name)) continue;
      card?.destroy();
      place.remove();
      this.cards.delete(name);
    }
  }

  /** Show values that are at hand already. */
  showValues(figures) {
    this.show(figures);
    for (const figure of figures) {
      this.watcher.unobserve(this.cards.get(figure.name).place);
      this.#put(figure);
    }
  }

  /** Ask for the figures in view again. */
  async refresh() {
    const wanted = [...this.cards].filter(([, one]) => one.isSeen).map(([name]) => name);
    await Promise.all(wanted.map((name) => this.#fetch(name)));
  }

  /** All of them, seen or not: before printing. */
  async all() {
    await Promise.all([...this.cards.keys()].map((name) => this.#fetch(name)));
  }

  destroy() {
    this.watcher.disconnect();
    for (const { card } of this.cards.values()) card?.destroy();
  }

  #seen(entries) {
    for (const { target, isIntersecting } of entries) {
      if (!isIntersecting) continue;
      this.watcher.unobserve(target);
      const { name } = target.dataset;
      if (this.cards.has(name)) this.cards.get(name).isSeen = true;
      this.#fetch(name);
    }
  }

  async #fetch(name) {
    try {
      await this.#put(await get(`/api/figures/${name}`));
    } catch (error) {
      const one = this.cards.get(name);
      if (one && !one.card) one.place.replaceChildren(h("p.missing", error.message));
    }
  }

  async #put(figure) {
    drawing ??= import("./figure.js");
    const { FigureCard } = await drawing;
    const one = this.cards.get(figure.name);
    if (!one) return; // it left the page meanwhile
    if (one.card) {
      one.card.update(figure);
      return;
    }
    one.card = new FigureCard(figure, { open: this.open });
    one.place.classList.toggle("wide", figure.is_wide);
    one.place.replaceChildren(one.card.element);
    one.card.draw();
  }
}
