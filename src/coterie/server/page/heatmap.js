// Layers × experts: how much of an answer each expert has read, and the path of one token through them.
//
// A cell is as strong as the share of tokens its expert took; three times its even share is full strength.

import { counted, el, percent, svg } from "./dom.js";

/** The class of an expert's colour: eight colours, and from expert 8 on the same again with another line. */
export function hue(expert) {
  return `e${expert % 8} m${Math.floor(expert / 8) % 4}`;
}

export class HeatMap {
  /** `onCell(layer, expert)` and `onLayer(layer)` when one is chosen. */
  constructor(nLayers, nExperts, topK, { onCell, onLayer }) {
    Object.assign(this, { nLayers, nExperts, onCell, onLayer });
    this.full = Math.min(1, (3 * topK) / nExperts);
    this.counts = new Uint32Array(nLayers * nExperts);
    this.weights = new Float64Array(nLayers * nExperts);
    this.nTokens = 0;
    this.focused = 0;
    this.cells = [];
    this.line = svg("polyline", { class: "path-line", points: "" });
    this.root = this.build();
  }

  build() {
    const head = el("div", { role: "row", class: "row" }, el("span", { role: "columnheader", class: "corner" }, el("span", { class: "unseen" }, "Layer")));
    for (let e = 0; e < this.nExperts; e += 1) {
      head.append(el("span", { role: "columnheader", class: `column-name ${hue(e)}`, "aria-label": `Expert ${e}` }, String(e)));
    }
    this.rows = [];
    for (let layer = 0; layer < this.nLayers; layer += 1) {
      const name = el("span", { role: "rowheader", class: "row-name", on: { click: () => this.onLayer(layer) } }, String(layer));
      const row = el("div", { role: "row", class: "row", "aria-label": `Layer ${layer}` }, name);
      for (let e = 0; e < this.nExperts; e += 1) {
        const place = this.cells.length;
        const cell = el("span", { role: "gridcell", class: `cell ${hue(e)}`, tabindex: place ? "-1" : "0", data: { place } });
        this.cells.push(cell);
        row.append(cell);
      }
      this.rows.push(row);
    }
    const overlay = svg("svg", { class: "overlay", "aria-hidden": "true", viewBox: `0 0 ${this.nExperts} ${this.nLayers}`, preserveAspectRatio: "none" }, this.line);
    const grid = el("div", { role: "grid", class: "heat", "aria-label": "Layers by experts: the share of tokens each expert took" }, head, ...this.rows, overlay);
    grid.style.setProperty("--experts", this.nExperts);
    grid.style.setProperty("--layers", this.nLayers);
    grid.classList.toggle("is-tall", this.nLayers > 12);
    grid.classList.toggle("is-wide", this.nExperts > 8);
    grid.addEventListener("click", (event) => this.clicked(event));
    grid.addEventListener("keydown", (event) => this.pressed(event));
    for (const type of ["pointerover", "focusin"]) grid.addEventListener(type, (event) => this.name(event.target));
    return grid;
  }

  /** Counts the tokens from `from` on. */
  take(tokens, from) {
    for (const token of tokens.slice(from)) {
      if (!token.experts) continue;
      this.nTokens += 1;
      for (let layer = 0; layer < this.nLayers; layer += 1) {
        token.experts[layer].forEach((expert, k) => {
          if (expert < 0 || expert >= this.nExperts) return;
          this.counts[layer * this.nExperts + expert] += 1;
          this.weights[layer * this.nExperts + expert] += token.weights[layer][k];
        });
      }
    }
  }

  draw() {
    const n = Math.max(1, this.nTokens);
    this.cells.forEach((cell, i) => {
      const heat = Math.min(1, this.counts[i] / n / this.full).toFixed(2);
      if (cell.heat === heat) return;
      cell.heat = heat;
      cell.style.setProperty("--heat", heat);
    });
  }

  /** The path of a token: its first experts joined, all of them ringed. None: nothing is. */
  showPath(token, isLive = false) {
    for (const cell of this.cells) cell.classList.remove("on-path", "on-path-too");
    const points = [];
    (token?.experts ?? []).forEach((experts, layer) => {
      experts.forEach((expert, k) => this.cell(layer, expert)?.classList.add(k ? "on-path-too" : "on-path"));
      if (experts[0] >= 0) points.push(`${experts[0] + 0.5},${layer + 0.5}`);
    });
    this.line.setAttribute("points", points.join(" "));
    this.root.classList.toggle("is-live", isLive);
  }

  showCell(layer, expert) {
    this.root.querySelector(".is-chosen")?.classList.remove("is-chosen");
    if (layer !== null) this.cell(layer, expert)?.classList.add("is-chosen");
  }

  showLayer(layer) {
    this.rows.forEach((row, i) => row.classList.toggle("is-layer", i === layer));
  }

  cell(layer, expert) {
    return expert < 0 ? undefined : this.cells[layer * this.nExperts + expert];
  }

  /** What a cell says is written when somebody looks. */
  name(target) {
    const place = target.dataset?.place;
    if (place === undefined) return;
    const count = this.counts[place];
    const text = `Layer ${Math.floor(place / this.nExperts)}, expert ${place % this.nExperts}: ${count} of ${counted(this.nTokens, "token")} (${percent(count / Math.max(1, this.nTokens))})`;
    target.setAttribute("aria-label", text);
    target.title = text;
  }

  clicked(event) {
    const place = event.target.dataset?.place;
    if (place === undefined) return;
    this.focus(Number(place));
    this.onCell(Math.floor(place / this.nExperts), place % this.nExperts);
  }

  pressed(event) {
    const { nExperts: n, focused } = this;
    if (event.altKey || event.ctrlKey || event.metaKey) return;
    const moves = {
      ArrowLeft: focused % n ? -1 : 0, ArrowRight: (focused + 1) % n ? 1 : 0,
      ArrowUp: focused >= n ? -n : 0, ArrowDown: focused + n < this.cells.length ? n : 0,
      Home: -(focused % n), End: n - 1 - (focused % n),
    };
    if (event.key in moves) this.focus(focused + moves[event.key]);
    else if (event.key === "Enter" || event.key === " ") this.onCell(Math.floor(focused / n), focused % n);
    else return;
    event.preventDefault();
  }

  focus(place) {
    this.cells[this.focused].tabIndex = -1;
    this.focused = place;
    const cell = this.cells[place];
    cell.tabIndex = 0;
    this.name(cell);
    cell.focus();
  }
}
