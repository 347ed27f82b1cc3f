// The page: one conversation at a time, the others at hand, and what the buttons and keys do.

import { listModels, showModel, showPrompt } from "./api.js";
import { Alternatives } from "./alternatives.js";
import { fill, requestFor } from "./answering.js";
import { Chats } from "./chats.js";
import { newNode } from "./conversation.js";
import { byId, counted, el, oncePerFrame, say } from "./dom.js";
import { wireKeys, wireTheme } from "./keys.js";
import { Settings } from "./settings.js";
import { viewOf } from "./turns.js";

const IDEAS = {
  chat: ["Why does a mixture of experts read fast?", "Explain rainbows to a child of six.", "Write a haiku about a library at night."],
  base: ["Il était une fois", "Once upon a time there was", "Es war einmal"],
};

class App {
  constructor() {
    this.models = new Map();
    this.views = new Map(); // node -> view, of turns that are or were shown
    this.stopping = null; // AbortController of the answer in the making
    this.isLaneOpen = false;
    this.settings = new Settings((name) => this.onSetting(name));
    this.chats = new Chats(this);
    this.alternatives = new Alternatives((node, i, other) => this.branch(node, i, other));
    this.drawSoon = oncePerFrame(() => this.drawStreaming());
    this.wire();
    wireKeys(this);
    wireTheme();
    this.render();
    this.findModels();
  }

  wire() {
    const ask = byId("ask");
    byId("composer").addEventListener("submit", (event) => {
      event.preventDefault();
      this.send();
    });
    ask.addEventListener("input", () => fitBox(ask));
    byId("stop").addEventListener("click", () => this.stop());
    byId("new-chat").addEventListener("click", () => this.newChat());
    byId("toggle-lane").addEventListener("click", () => this.toggleLane());
    byId("show-prompt").addEventListener("click", () => this.showPrompt());
    byId("export").addEventListener("click", () => this.export());
    byId("show-help").addEventListener("click", () => byId("help").showModal());
    byId("model").addEventListener("change", () => this.onModel());
  }

  // --- what there is

  get model() {
    return byId("model").value || null;
  }

  get isBusy() {
    return this.stopping !== null;
  }

  get conversation() {
    return this.chats.current;
  }

  shape(id) {
    return this.models.get(id)?.coterie ?? null;
  }

  /** Whether a model answers; one that has no chat form goes on with the text. Not known before it is loaded. */
  isChat(id) {
    return this.shape(id)?.chat_form !== null;
  }

  async findModels() {
    try {
      const before = this.model;
      this.models = new Map((await listModels()).map((card) => [card.id, card]));
      byId("model").replaceChildren(...[...this.models.keys()].map((id) => el("option", { value: id, selected: id === before }, id)));
      this.notice(null);
    } catch (error) {
      this.notice(error.message);
      if (error.status === 401) this.openSettings("key");
    }
    this.onModel();
  }

  onModel() {
    const shape = this.shape(this.model);
    const isKnown = shape?.n_layers !== undefined;
    byId("shape").textContent = !isKnown ? "" : shape.is_sparse
      ? `${shape.n_layers} layers × ${shape.n_experts} experts, ${shape.top_k} a token` : `${shape.n_layers} layers, no experts`;
    const isBase = !this.isChat(this.model);
    byId("about").textContent = isBase
      ? "This model is not tuned for chat: it continues your text."
      : "Open Experts to see which of them reads each token; point at a word to see what else it could have been.";
    byId("greeting").textContent = isBase ? "Begin a text, and watch who goes on." : "Ask something, and watch who answers.";
    byId("ask").placeholder = isBase ? "Begin a text" : "Write a message";
    byId("ideas").replaceChildren(...IDEAS[isBase ? "base" : "chat"].map((idea) =>
      el("li", {}, el("button", { type: "button", class: "idea", on: { click: () => this.use(idea) } }, idea))));
    byId("toggle-lane").disabled = isKnown && !shape.is_sparse;
    this.render();
  }

  /** A model that was not in memory is when it has answered: then its shape is known. */
  async refreshModel(id) {
    if (!id || this.shape(id)?.n_layers !== undefined) return;
    try {
      this.models.set(id, await showModel(id));
      this.onModel();
    } catch { /* it was only for show */ }
  }

  // --- what one can do

  use(idea) {
    byId("ask").value = idea;
    byId("ask").focus();
    fitBox(byId("ask"));
  }

  send() {
    const box = byId("ask");
    if (this.isBusy || !box.value.trim() || !this.mayAsk()) return;
    const question = this.conversation.add(this.conversation.last, "user", box.value);
    box.value = "";
    fitBox(box);
    this.answer(this.conversation.add(question, "assistant"));
  }

  mayAsk() {
    const wrong = this.settings.wrong;
    if (wrong) {
      this.notice("A setting has a value that cannot be sent: it is marked.");
      this.openSettings(wrong);
    }
    return !wrong;
  }

  edit(node, text) {
    if (!this.mayAsk()) return;
    const question = this.conversation.add(node.parent, "user", text);
    this.answer(this.conversation.add(question, "assistant"));
  }

  again(node, experts = null) {
    if (this.isBusy || !this.mayAsk()) return;
    const next = this.conversation.add(node.parent, "assistant");
    next.experts = experts;
    this.answer(next);
  }

  ban(node, layer, expert) {
    this.again(node, { ban: [...(node.experts?.ban ?? []), [layer, expert]] });
  }

  /** After a failure: the same answer where nothing had come, else one beside it. */
  retry(node) {
    if (this.isBusy || !this.mayAsk()) return;
    if (node.text === "") this.answer(node);
    else this.again(node, node.experts);
  }

  goOn(node) {
    if (!this.isBusy && this.mayAsk()) this.answer(node);
  }

  /** A new answer that is the old one before token `i`, then the other token, then what the model makes of it. */
  branch(node, i, other) {
    if (this.isBusy || !this.mayAsk()) return;
    const kept = node.tokens.slice(0, i);
    const text = kept.map((token) => token.text).join("");
    const next = this.conversation.add(node.parent, "assistant", other.isEnd ? text : text + other.token);
    next.tokens = kept;
    next.model = node.model;
    next.experts = node.experts;
    if (other.isEnd) {
      next.finish = "stop";
      this.render();
      return;
    }
    next.tokens.push({ text: other.token, logprob: other.logprob, top: node.tokens[i].top, experts: null, weights: null });
    this.answer(next);
  }

  turn(node, step) {
    if (!this.conversation.turn(node, step)) return;
    this.render();
    const view = this.views.get(node.parent.children[node.parent.chosen]);
    const [same, other] = [step, -step].map((by) => view.root.querySelector(`[data-step="${by}"]`));
    (same?.disabled ? other : same)?.focus();
  }

  async answer(node) {
    this.stopping = new AbortController();
    this.notice(null);
    node.isStreaming = true;
    this.streaming = node;
    this.render();
    this.toEnd();
    say("Answering");
    await fill(node, this, this.stopping.signal);
    this.stopping = null;
    this.streaming = null;
    this.render();
    say(node.error ? "" : node.finish === "stopped" ? "Stopped" : "Answer complete");
    this.chats.keep();
    this.refreshModel(node.model);
  }

  stop() {
    this.stopping?.abort();
    byId("ask").focus();
  }

  newChat() {
    this.stop();
    this.chats.start();
    byId("ask").focus();
  }

  toggleLane() {
    this.isLaneOpen = !this.isLaneOpen;
    for (const view of this.views.values()) view.isLaneOpen = null;
    this.render();
    say(this.isLaneOpen ? "Experts shown under the answers" : "Experts hidden");
  }

  // --- what is seen

  onProgress() {
    this.drawSoon();
  }

  drawStreaming() {
    const view = this.views.get(this.streaming);
    if (!view) return;
    const isFollowing = isNearEnd(byId("scroll"));
    view.draw();
    if (isFollowing) this.toEnd();
  }

  render() {
    const path = this.conversation.path();
    const views = path.map((node) => {
      if (!this.views.has(node)) this.views.set(node, viewOf(node, this));
      return this.views.get(node);
    });
    const isFollowing = isNearEnd(byId("scroll"));
    const room = byId("turns");
    views.forEach((view, i) => {
      if (room.children[i] !== view.root) room.insertBefore(view.root, room.children[i] ?? null);
    });
    while (room.children.length > views.length) room.lastElementChild.remove();
    for (const view of views) view.update();
    if (isFollowing && path.length) this.toEnd();
    byId("welcome").hidden = path.length > 0;
    byId("send").hidden = this.isBusy;
    byId("stop").hidden = !this.isBusy;
    byId("toggle-lane").setAttribute("aria-pressed", String(this.isLaneOpen));
    document.title = this.conversation.title ? `${this.conversation.title.slice(0, 60)} – coterie` : "coterie";
    this.chats.render();
  }

  forget() {
    this.views.clear();
  }

  toEnd() {
    byId("scroll").scrollTop = byId("scroll").scrollHeight;
  }

  notice(text) {
    byId("notice").hidden = !text;
    byId("notice").textContent = text ?? "";
  }

  onSetting(name) {
    if (name === "key") this.findModels();
    if (name === "keep") this.chats.keep();
    if (name === "markdown") this.render();
  }

  openSettings(field = null) {
    this.openDrawer("settings", true);
    if (field) this.settings.focus(field);
  }

  openDrawer(id, isOpen = byId(id).hidden) {
    byId(id).hidden = !isOpen;
    const opener = byId(`open-${id}`);
    opener.setAttribute("aria-expanded", String(isOpen));
    if (isOpen) byId(id).querySelector("button").focus();
    else opener.focus();
  }

  async showPrompt() {
    const node = newNode(this.conversation.last, "user", byId("ask").value);
    const { model, messages, continue_final_message } = requestFor(node.text ? node : this.conversation.last, this);
    if (!messages?.some((message) => message.content)) {
      this.notice("There is no prompt yet: write something first.");
      return;
    }
    try {
      const { token_strs: pieces, count, max_model_len: limit, chat_form: form } = await showPrompt({ model, messages, continue_final_message });
      this.notice(null);
      byId("prompt-about").textContent = `${counted(count, "token")} of ${limit.toLocaleString("en")} · ${form ? `chat form ${form}` : "no chat form: the text as it is"}`;
      byId("prompt-text").replaceChildren(...pieces.map((piece) => el("span", { class: "piece" }, piece.replace(/▁/g, " ").replace(/^<0x0A>$/, "↵\n"))));
      byId("prompt").showModal();
    } catch (error) {
      this.notice(error.message);
    }
  }

  export() {
    const settings = { ...this.settings.body(), system: this.settings.value("system") };
    const data = { ...this.conversation.toJSON(), model: this.model, settings };
    const url = URL.createObjectURL(new Blob([JSON.stringify(data, null, 1)], { type: "application/json" }));
    el("a", { href: url, download: "conversation.json" }).click();
    setTimeout(() => URL.revokeObjectURL(url), 10000);
  }
}

function isNearEnd(room) {
  return room.scrollTop + room.clientHeight > room.scrollHeight - 80;
}

function fitBox(box) {
  box.style.setProperty("height", "auto");
  box.style.setProperty("height", `${Math.min(box.scrollHeight + 2, window.innerHeight * 0.4)}px`);
}

new App();
