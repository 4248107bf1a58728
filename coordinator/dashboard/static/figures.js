// The figures of a page: fetched when they come into view, drawn anew only where they changed.

import { get } from "./api.js";
import { h } from "./dom.js";

let drawing = null; // uPlot is loaded when the first figure is wanted

export class FigureGroup {
  /**
   * @param {object} acts `open(trialId)`; `level` of the heading that each figure gets
   */
  constructor({ open, level = 3 }) {
    this.open = open;
    this.level = level;
    this.cards = new Map(); // name -> {place, card, isSeen}
    this.element = h("section.figures", { "aria-label": "Figures" });
    this.watcher = new IntersectionObserver((entries) => this.#seen(entries), { rootMargin: "300px" });
  }

  /** Show these figures by name, in this order. `entries`: {name, title, is_wide}. */
  show(entries) {
    for (const entry of entries) {
      if (this.cards.has(entry.name)) continue;
      const place = h("div.figure-place", { "data-name": entry.name });
      this.cards.set(entry.name, { place, card: null, isSeen: false, isWide: entry.is_wide });
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
    this.#arrange();
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
    for (const one of this.cards.values()) one.isSeen = true;
    await Promise.all([...this.cards.keys()].map((name) => this.#fetch(name)));
  }

  destroy() {
    this.watcher.disconnect();
    for (const { card } of this.cards.values()) card?.destroy();
  }

  /** What has nothing to draw stands below in a line; one of a pair that is left alone takes the whole width. */
  #arrange() {
    let isLeft = false; // the next narrow figure stands in the left column
    let last = null;
    for (const { place, card, isWide } of this.cards.values()) {
      const isEmpty = card?.isEmpty ?? false;
      place.classList.toggle("empty", isEmpty);
      place.classList.toggle("wide", isWide && !isEmpty);
      place.classList.remove("lone");
      if (isEmpty) continue;
      if (isWide && isLeft) last.classList.add("lone");
      isLeft = !isWide && !isLeft;
      last = place;
    }
    if (isLeft) last.classList.add("lone");
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
    one.isWide = figure.is_wide;
    if (one.card) {
      one.card.update(figure);
      this.#arrange();
      return;
    }
    one.card = new FigureCard(figure, { open: this.open, level: this.level });
    one.place.replaceChildren(one.card.element);
    this.#arrange();
    one.card.draw();
  }
}
