// The models that are served, which one is chosen, and what the page says of it.

import { listModels, showModel } from "./api.js";
import { byId, el } from "./dom.js";

const IDEAS = {
  chat: ["Why does a mixture of experts read fast?", "Explain rainbows to a child of six.", "Write a haiku about a library at night."],
  base: ["Il était une fois", "Once upon a time there was", "Es war einmal"],
};

export class Models {
  constructor(app) {
    this.app = app;
    this.cards = new Map();
    byId("model").addEventListener("change", () => this.show());
  }

  get chosen() {
    return byId("model").value || null;
  }

  shape(id) {
    return this.cards.get(id)?.coterie ?? null;
  }

  /** Whether a model answers; one that has no chat form goes on with the text. Not known before it is loaded. */
  isChat(id) {
    return this.shape(id)?.chat_form !== null;
  }

  async find() {
    try {
      const before = this.chosen;
      this.cards = new Map((await listModels()).map((card) => [card.id, card]));
      byId("model").replaceChildren(...[...this.cards.keys()].map((id) => el("option", { value: id, selected: id === before }, id)));
      this.app.notice(null);
    } catch (error) {
      this.app.notice(error.message);
      if (error.status === 401) this.app.openSettings("key");
    }
    this.show();
  }

  /** A model that was not in memory is when it has answered: then its shape is known. */
  async refresh(id) {
    if (!id || this.shape(id)?.n_layers !== undefined) return;
    try {
      this.cards.set(id, await showModel(id));
      this.show();
    } catch { /* it was only for show */ }
  }

  show() {
    const shape = this.shape(this.chosen);
    const isKnown = shape?.n_layers !== undefined;
    byId("shape").textContent = !isKnown ? "" : shape.is_sparse
      ? `${shape.n_layers} layers × ${shape.n_experts} experts, ${shape.top_k} a token` : `${shape.n_layers} layers, no experts`;
    const isBase = !this.isChat(this.chosen);
    byId("about").textContent = isBase
      ? "This model is not tuned for chat: it continues your text."
      : "Open Experts to see which of them reads each token; point at a word to see what else it could have been.";
    byId("greeting").textContent = isBase ? "Begin a text, and watch who goes on." : "Ask something, and watch who answers.";
    byId("ask").placeholder = isBase ? "Begin a text" : "Write a message";
    byId("ideas").replaceChildren(...IDEAS[isBase ? "base" : "chat"].map((idea) =>
      el("li", {}, el("button", { type: "button", class: "idea", on: { click: () => this.app.use(idea) } }, idea))));
    byId("toggle-lane").disabled = isKnown && !shape.is_sparse;
    this.app.render();
  }
}
