// A Figure value as an element: title, plot, legend, caption; the same numbers as a table, CSV and PNG.

import { Chart, describe, titleOf } from "./chart.js";
import { announce, download, h } from "./dom.js";
import { capital, figure as number } from "./format.js";
import { glyph, guideGlyph } from "./marks.js";

const MAX_TABLE_ROWS = 2000;
const shown = new Set(); // figures on the page, repainted when the theme changes

/**
 * @param {object} figure a Figure as /api/figures/{name} gives it
 * @param {object} acts `open(trialId)`: where a click on a point leads; `level` of its heading
 */
export class FigureCard {
  constructor(figure, { open, level = 3 }) {
    this.open = open;
    this.holder = h("div.plot", { tabindex: 0, role: "group", "aria-roledescription": "figure" });
    this.legend = h("ul.legend");
    this.caption = h("figcaption");
    this.table = h("div.scroll.figure-table", { hidden: true, tabindex: 0 });
    this.title = h(`h${level}.card-title`);
    this.yTitle = h("p.y-title");
    this.tableButton = h("button.quiet", { type: "button", "aria-expanded": "false", onclick: () => this.#toggleTable() }, "Table");
    const tools = h("div.figure-tools", [
      this.tableButton,
      h("button.quiet", { type: "button", onclick: () => this.#saveCsv(), title: "Save the numbers" }, "CSV"),
      h("button.quiet", { type: "button", onclick: () => this.#savePng(), title: "Save the picture" }, "PNG"),
    ]);
    this.missing = h("p.missing");
    this.drawn = h("div", [this.yTitle, this.holder, this.legend, this.table]);
    this.tools = tools;
    this.element = h("figure", { id: `figure-${figure.name}` }, [
      h("div.figure-head", [this.title, tools]),
      this.missing,
      this.drawn,
      this.caption,
    ]);
    this.update(figure);
    shown.add(this);
  }

  /** Show a newer value; does nothing where it is the same. */
  update(figure) {
    if (figure === this.figure) return;
    this.figure = figure;
    const { isEmpty } = this;
    this.element.classList.toggle("empty", isEmpty);
    this.title.textContent = figure.title;
    this.missing.hidden = !isEmpty;
    this.missing.textContent = capital(figure.reason || "there is nothing to draw yet.");
    this.drawn.hidden = this.tools.hidden = this.caption.hidden = isEmpty;
    this.caption.textContent = figure.caption;
    if (isEmpty) {
      this.chart?.destroy();
      this.chart = null;
      return;
    }
    this.yTitle.textContent = titleOf(figure.y);
    this.yTitle.hidden = !titleOf(figure.y);
    this.holder.setAttribute(
      "aria-label",
      `${figure.title}. ${figure.caption} Arrow keys go from point to point; the button Table shows the numbers.`,
    );
    this.#legend();
    if (!this.table.hidden) this.#fillTable();
    if (this.chart) this.chart.update(figure);
    else if (this.element.isConnected) this.draw();
  }

  /** Whether there is nothing to draw yet. */
  get isEmpty() {
    return this.figure.series.length === 0;
  }

  /** Draw, once the element has a width: after it was put on the page. */
  draw() {
    if (this.chart || this.isEmpty) return;
    this.chart = new Chart(this.holder, this.figure, { open: this.open, say: announce });
  }

  destroy() {
    shown.delete(this);
    this.chart?.destroy();
    this.chart = null;
  }

  #legend() {
    const named = this.figure.series.filter((series) => series.name);
    const guides = this.figure.guides.filter((guide) => guide.name);
    const groups = ["measured", "simulated", "predicted", ""].map((kind) => [kind, named.filter((series) => series.kind === kind)]);
    const items = groups
      .filter(([kind, all]) => all.length || (kind === "" && guides.length))
      .map(([kind, all]) =>
        h("li.legend-group", [
          kind ? h("span.tag", { class: kind }, kind) : null,
          unique(all).map((series) => this.#legendItem(series)),
          kind === "" ? guides.map((guide) => h("span.legend-item", { class: `c-${guide.colour}` }, guideGlyph(guide), h("span", guide.name))) : null,
        ]),
      );
    const labels = this.figure.series.filter((series) => series.show_labels).flatMap((series) => series.labels.filter((label) => label.includes(":")));
    if (labels.length) items.push(h("li.legend-labels", [...new Set(labels)].map((label) => h("span", label))));
    this.legend.replaceChildren(...items);
  }

  #legendItem(series) {
    const isHidden = this.chart?.hidden.has(series.name) ?? false;
    const button = h(
      "button.legend-item",
      {
        type: "button",
        class: `c-${series.colour}`,
        "aria-pressed": String(!isHidden),
        title: "Hide or show",
        onclick: () => {
          this.chart.toggle(series.name);
          button.setAttribute("aria-pressed", String(!this.chart.hidden.has(series.name)));
        },
      },
      glyph(series),
      h("span", series.name),
    );
    return button;
  }

  #toggleTable() {
    this.table.hidden = !this.table.hidden;
    this.tableButton.setAttribute("aria-expanded", String(!this.table.hidden));
    if (!this.table.hidden) this.#fillTable();
  }

  #fillTable() {
    const { figure } = this;
    const rows = pointsOf(figure);
    const hasTrials = rows.some((row) => row.trial);
    const body = rows.slice(0, MAX_TABLE_ROWS).map(({ series, kind, label, rows: [x, y], trial }) =>
      h("tr", [
        h("td", series, kind ? h("span.tag", { class: kind }, kind) : null),
        h("td", label),
        h("td.n", x.value, x.interval ? h("small", ` [${x.interval}]`) : null),
        h("td.n", y.value, y.interval ? h("small", ` [${y.interval}]`) : null),
        hasTrials ? h("td", trial ? h("a", { href: `/trials/${trial}` }, trial) : null) : null,
      ]),
    );
    const heads = ["series", "what", titleOf(figure.x), titleOf(figure.y), ...(hasTrials ? ["trial"] : [])];
    this.table.replaceChildren(
      h("table", [
        h("caption.visually-hidden", figure.title),
        h("thead", h("tr", heads.map((head, place) => h("th", { scope: "col", class: place === 2 || place === 3 ? "n" : "" }, head)))),
        h("tbody", body),
      ]),
    );
    if (rows.length > MAX_TABLE_ROWS) this.table.append(h("p.note", `The first ${number(MAX_TABLE_ROWS)} of ${number(rows.length)} rows; CSV holds all.`));
  }

  #saveCsv() {
    const { figure } = this;
    const heads = ["series", "kind", "label", "x", "x_low", "x_high", "y", "y_low", "y_high", "trial_id"];
    const lines = [heads];
    for (const series of figure.series) {
      series.x.forEach((x, i) => {
        const [xs, ys] = [series.x_interval[i] ?? ["", ""], series.y_interval[i] ?? ["", ""]];
        lines.push([series.name, series.kind, series.labels[i] ?? "", named(figure.x, x), ...xs, named(figure.y, series.y[i]), ...ys, series.trial_ids[i] ?? ""]);
      });
    }
    const text = `# ${titleOf(figure.x)} | ${titleOf(figure.y)}\n${lines.map((line) => line.map(csvCell).join(",")).join("\n")}\n`;
    download(`${figure.name}.csv`, new Blob([text], { type: "text/csv" }));
  }

  /** The plot with its title on the card's colour. */
  #savePng() {
    const source = this.chart.canvas;
    const ratio = source.width / source.clientWidth;
    const picture = h("canvas", { width: source.width, height: source.height + 34 * ratio });
    const ctx = picture.getContext("2d");
    ctx.fillStyle = this.chart.colours.card;
    ctx.fillRect(0, 0, picture.width, picture.height);
    ctx.fillStyle = this.chart.colours.ink;
    ctx.font = `600 ${13 * ratio}px system-ui, sans-serif`;
    ctx.fillText(this.figure.title, 12 * ratio, 20 * ratio);
    ctx.drawImage(source, 0, 34 * ratio);
    picture.toBlob((blob) => download(`${this.figure.name}.png`, blob));
  }
}

/** All points with their words, series after series. */
function pointsOf(figure) {
  return figure.series.flatMap((series) => series.x.map((_, index) => describe(figure, series, index)));
}

function named(axis, value) {
  return axis.categories[value] ?? value;
}

function csvCell(value) {
  const text = String(value);
  // A leading sign of a formula would be run by spreadsheets.
  const safe = /^[=@+\t\r]|^-(?![\d.])/.test(text) ? `'${text}` : text;
  return /[",\n]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
}

function unique(all) {
  return all.filter((series, place) => all.findIndex((one) => one.name === series.name) === place);
}

document.addEventListener("archfleet:theme", () => {
  for (const card of shown) card.chart?.recolour();
});
