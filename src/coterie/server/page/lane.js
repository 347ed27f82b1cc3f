// The routing lane under an answer: its tokens coloured by the expert of one layer, the heat map beside them, and what
// was clicked: a token's path through the layers, or the tokens of an expert.

import { button, counted, el, percent, say } from "./dom.js";
import { HeatMap, hue } from "./heatmap.js";

const recent = { layer: null, slot: 0 }; // a new lane begins where the last one was left

export class Lane {
  /** `onBan(layer, expert)` asks for the answer again without an expert. */
  constructor(node, shape, onBan) {
    Object.assign(this, { node, onBan, token: null, expert: null, n: 0, spans: [] });
    const first = node.tokens.find((token) => token.experts);
    this.nLayers = first.experts.length;
    this.topK = first.experts[0].length;
    this.nExperts = Math.max(shape?.n_experts ?? 0, 1 + Math.max(...first.experts.flat()));
    this.layer = Math.min(recent.layer ?? Math.floor(this.nLayers / 2), this.nLayers - 1);
    this.slot = Math.min(recent.slot, this.topK - 1);
    this.map = new HeatMap(this.nLayers, this.nExperts, this.topK, {
      onCell: (layer, expert) => this.chooseExpert(layer, expert),
      onLayer: (layer) => this.chooseLayer(layer),
    });
    this.ribbon = el("div", { class: "ribbon", role: "listbox", "aria-label": "Tokens, coloured by expert", "aria-orientation": "horizontal", tabindex: "0",
      on: { click: (e) => this.clicked(e), keydown: (e) => this.pressed(e) } });
    this.detail = el("div", { class: "detail" });
    this.root = el("section", { class: "lane", "aria-label": "Experts" }, this.bar(),
      el("div", { class: "lane-body" }, this.ribbon, el("div", {}, this.map.root, el("p", { class: "caption" }, "Layers down, experts across"))), this.detail);
    this.detail.style.setProperty("--slots", this.topK);
    this.showLayer();
    this.showDetail();
  }

  bar() {
    this.layerName = el("output", { class: "layer-name" });
    this.slider = el("input", { type: "range", min: 0, max: this.nLayers - 1, step: 1, "aria-label": "Layer", on: { input: () => this.chooseLayer(Number(this.slider.value)) } });
    const layers = el("div", { class: "group layers" }, this.layerName, this.slider);
    const words = ["1st", "2nd", "3rd", "4th"];
    this.slots = Array.from({ length: Math.min(this.topK, 4) }, (_, slot) =>
      el("button", { type: "button", class: "segment", on: { click: () => this.chooseSlot(slot) } }, words[slot]));
    const slots = this.slots.length > 1 ? el("div", { class: "group", role: "group", "aria-label": "Which of the token's experts" }, "Choice", el("div", { class: "segments" }, ...this.slots)) : null;
    return el("div", { class: "lane-bar" }, layers, slots);
  }

  /** Draws what has come since. */
  update() {
    const { tokens } = this.node;
    const fresh = tokens.slice(this.n);
    this.map.take(tokens, this.n);
    this.n = tokens.length;
    for (const token of fresh) {
      const span = el("span", { role: "option", id: `n${this.node.id}-${this.spans.length}`, "aria-selected": "false", data: { i: this.spans.length } }, shown(token.text));
      this.paint(span, token);
      this.spans.push(span);
    }
    const isAtEnd = this.ribbon.scrollTop + this.ribbon.clientHeight > this.ribbon.scrollHeight - 30;
    this.ribbon.append(...this.spans.slice(this.spans.length - fresh.length));
    if (isAtEnd && this.node.isStreaming) this.ribbon.scrollTop = this.ribbon.scrollHeight;
    this.map.draw();
    if (this.token === null) this.map.showPath(this.node.isStreaming ? tokens.at(-1) : null, true);
    if (this.expert) this.showDetail();
  }

  paint(span, token) {
    const expert = token.experts?.[this.layer]?.[this.slot] ?? -1;
    const isTaken = this.expert && token.experts?.[this.expert.layer]?.includes(this.expert.expert);
    span.className = isTaken ? `tok ${hue(this.expert.expert)} is-taken` : expert >= 0 ? `tok ${hue(expert)}` : "tok none";
    span.setAttribute("aria-label", `${token.text}: ${expert >= 0 ? `expert ${expert}` : "no expert known"}`);
  }

  paintAll() {
    this.spans.forEach((span, i) => this.paint(span, this.node.tokens[i]));
    this.ribbon.classList.toggle("is-filtered", this.expert !== null);
    this.spans[this.token]?.classList.add("is-chosen");
  }

  showLayer() {
    this.layerName.textContent = `Layer ${this.layer} of 0–${this.nLayers - 1}`;
    this.slider.value = this.layer;
    this.slots.forEach((segment, i) => segment.setAttribute("aria-pressed", String(i === this.slot)));
    this.map.showLayer(this.layer);
    this.paintAll();
  }

  chooseLayer(layer) {
    this.layer = Math.max(0, Math.min(layer, this.nLayers - 1));
    recent.layer = this.layer;
    this.showLayer();
  }

  chooseSlot(slot) {
    this.slot = slot;
    recent.slot = slot;
    this.showLayer();
  }

  chooseToken(i, { isTold = false } = {}) {
    this.expert = null;
    this.spans[this.token]?.setAttribute("aria-selected", "false");
    this.token = i;
    this.map.showCell(null);
    this.map.showPath(i === null ? null : this.node.tokens[i]);
    this.paintAll();
    this.showDetail();
    const span = this.spans[i];
    span?.setAttribute("aria-selected", "true");
    span?.scrollIntoView({ block: "nearest" });
    if (span) this.ribbon.setAttribute("aria-activedescendant", span.id);
    else this.ribbon.removeAttribute("aria-activedescendant");
    if (isTold && span) say(span.getAttribute("aria-label"));
  }

  chooseExpert(layer, expert) {
    this.token = null;
    this.expert = { layer, expert };
    this.map.showPath(null);
    this.map.showCell(layer, expert);
    this.slot = 0;
    this.chooseLayer(layer);
    this.showDetail();
    this.comeIntoView();
    say(this.detail.querySelector(".what")?.textContent ?? "");
  }

  /** All of the lane, where there is room for it: what was clicked may have made it longer. */
  comeIntoView() {
    if (this.root.offsetHeight < this.root.closest("#scroll").clientHeight) this.root.scrollIntoView({ block: "nearest" });
  }

  letGo() {
    this.map.showCell(null);
    this.chooseToken(null);
  }

  clicked(event) {
    const i = event.target.closest?.("[data-i]")?.dataset.i;
    if (i === undefined) return;
    this.chooseToken(Number(i) === this.token ? null : Number(i));
    this.comeIntoView();
  }

  pressed(event) {
    if (event.altKey || event.ctrlKey || event.metaKey) return;
    const last = this.spans.length - 1;
    const at = this.token ?? -1;
    const places = { ArrowLeft: Math.max(0, at - 1), ArrowRight: Math.min(last, at + 1), Home: 0, End: last };
    if (event.key in places && last >= 0) this.chooseToken(places[event.key], { isTold: true });
    else if (event.key === "ArrowUp") this.chooseLayer(this.layer - 1);
    else if (event.key === "ArrowDown") this.chooseLayer(this.layer + 1);
    else if (event.key === "Escape" && (this.token !== null || this.expert)) this.letGo();
    else return;
    event.preventDefault();
    event.stopPropagation();
  }

  showDetail() {
    if (this.expert) this.detail.replaceChildren(...this.expertDetail(this.expert));
    else if (this.token !== null) this.detail.replaceChildren(...this.tokenDetail(this.node.tokens[this.token]));
    else this.detail.replaceChildren(el("p", { class: "soft what" }, "Click a token to see its path through the layers, a cell to see which tokens that expert took."));
  }

  head(...words) {
    return el("div", { class: "detail-head" }, el("p", { class: "what" }, ...words), button("close", "Let go", () => this.letGo()));
  }

  tokenDetail(token) {
    const chance = token.logprob === null ? "" : `, chosen with ${percent(Math.exp(token.logprob))}`;
    const title = this.head("Token ", el("b", { class: "mono" }, shown(token.text)), ` (number ${this.token + 1}${chance})`);
    if (!token.experts) return [title, el("p", { class: "soft" }, "You chose this token; which experts would have read it is not known.")];
    const rows = token.experts.map((experts, layer) => el("li", {}, el("span", { class: "soft layer" }, String(layer)),
      el("span", { class: "shares" }, ...experts.map((expert, k) => this.share(layer, expert, token.weights[layer][k])))));
    return [title, el("ol", { class: "path", "aria-label": "Experts and weights by layer" }, ...rows)];
  }

  share(layer, expert, weight) {
    if (expert < 0) return null;
    const label = `Layer ${layer}: expert ${expert}, weight ${weight.toFixed(2)}`;
    const node = el("button", { type: "button", class: `share ${hue(expert)}`, title: label, "aria-label": label, on: { click: () => this.chooseExpert(layer, expert) } },
      String(expert), el("span", { class: "weight" }, weight.toFixed(2)));
    node.style.setProperty("--weight", Math.max(0.02, weight));
    return node;
  }

  expertDetail({ layer, expert }) {
    const taken = this.node.tokens.filter((token) => token.experts?.[layer]?.includes(expert));
    const place = layer * this.nExperts + expert;
    const mean = taken.length ? `, with a mean weight of ${(this.map.weights[place] / taken.length).toFixed(2)}` : "";
    const share = percent(taken.length / Math.max(1, this.map.nTokens));
    const title = this.head(el("span", { class: `swatch ${hue(expert)}` }), `Expert ${expert} in layer ${layer} took ${taken.length} of ${counted(this.map.nTokens, "token")} (${share})${mean}.`);
    const counts = new Map();
    for (const { text } of taken) counts.set(text, (counts.get(text) ?? 0) + 1);
    const most = [...counts].sort((a, b) => b[1] - a[1]).slice(0, 40);
    const chips = most.map(([text, n]) => el("li", { class: "mono" }, shown(text).replaceAll("\n", ""), n > 1 ? el("span", { class: "soft" }, ` ×${n}`) : null));
    const again = this.node.isStreaming ? null
      : el("button", { type: "button", class: "link", on: { click: () => this.onBan(layer, expert) } }, "Answer again without this expert");
    return [title, el("ul", { class: "chips", "aria-label": "Its tokens, the most frequent first" }, ...chips), again];
  }
}

/** A token to look at: line breaks and nothing at all are made visible. */
export function shown(text) {
  return text === "" ? "·" : text.replace(/\r?\n/g, "↵\n").replace(/\t/g, "⇥");
}
