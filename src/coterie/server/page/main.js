// The page: one conversation at a time, the others at hand, and what the buttons and keys do.

import { Alternatives } from "./alternatives.js";
import { fill } from "./answering.js";
import { Chats } from "./chats.js";
import { byId, oncePerFrame, say } from "./dom.js";
import { wireKeys, wireTheme } from "./keys.js";
import { Models } from "./models.js";
import { exportJson, showThePrompt } from "./prompt.js";
import { Settings } from "./settings.js";
import { viewOf } from "./turns.js";

class App {
  constructor() {
    this.models = new Models(this);
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
    this.models.find();
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
    byId("show-prompt").addEventListener("click", () => showThePrompt(this));
    byId("export").addEventListener("click", () => exportJson(this));
    byId("show-help").addEventListener("click", () => byId("help").showModal());
  }

  // --- what there is

  get model() {
    return this.models.chosen;
  }

  shape(id) {
    return this.models.shape(id);
  }

  isChat(id) {
    return this.models.isChat(id);
  }

  get isBusy() {
    return this.stopping !== null;
  }

  get conversation() {
    return this.chats.current;
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
    this.models.refresh(node.model);
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
    if (name === "key") this.models.find();
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
}

function isNearEnd(room) {
  return room.scrollTop + room.clientHeight > room.scrollHeight - 80;
}

function fitBox(box) {
  box.style.setProperty("height", "auto");
  box.style.setProperty("height", `${Math.min(box.scrollHeight + 2, window.innerHeight * 0.4)}px`);
}

new App();
