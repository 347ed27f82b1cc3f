// One turn of the conversation on the page: a question, or an answer with what can be done with it.

import { button, copy, counted, el } from "./dom.js";
import { Lane } from "./lane.js";
import { renderMarkdown } from "./markdown.js";
import { Pieces } from "./pieces.js";

/** The view of a node. `app` has the settings, the models and what the buttons do. */
export function viewOf(node, app) {
  return node.role === "user" ? new Question(node, app) : new Answer(node, app);
}

class Turn {
  constructor(node, app, kind, name) {
    Object.assign(this, { node, app });
    this.foot = el("div", { class: "foot" });
    this.root = el("article", { class: `turn ${kind}`, "aria-label": name });
  }

  /** ‹ 2/3 › where there are others. */
  siblings() {
    const { node } = this;
    const all = node.parent.children;
    if (all.length < 2) return null;
    const place = all.indexOf(node) + 1;
    const step = (by, label, name) => button(name, label, () => this.app.turn(node, by), { disabled: place + by < 1 || place + by > all.length, data: { step: by } });
    return el("span", { class: "siblings", role: "group", "aria-label": `Version ${place} of ${all.length}` },
      step(-1, "Version before", "left"), el("span", { class: "count" }, `${place}/${all.length}`), step(1, "Next version", "right"));
  }

  copyButton() {
    const it = button("copy", "Copy", async () => {
      if (await copy(this.node.text)) it.classList.add("is-done");
      setTimeout(() => it.classList.remove("is-done"), 1200);
    });
    return it;
  }
}

class Question extends Turn {
  constructor(node, app) {
    super(node, app, "question", "You");
    this.text = el("div", { class: "said", dir: "auto" });
    this.root.append(this.text, this.foot);
  }

  update() {
    if (this.isEdited) return;
    this.text.textContent = this.node.text;
    const edit = button("edit", "Edit and branch", () => this.edit(), { disabled: this.app.isBusy });
    const parts = [this.siblings(), edit, this.copyButton()];
    this.foot.replaceChildren(...parts.filter(Boolean));
  }

  edit() {
    this.isEdited = true;
    const box = el("textarea", { "aria-label": "Edit your message", rows: Math.min(10, this.node.text.split("\n").length + 1) });
    box.value = this.node.text;
    const end = () => {
      this.isEdited = false;
      this.text.classList.remove("is-edited");
      this.update();
    };
    const send = () => {
      const text = box.value;
      if (!text.trim() || this.app.isBusy) return;
      end();
      this.app.edit(this.node, text);
    };
    const cancel = () => {
      end();
      this.foot.querySelector("[aria-label^=Edit]")?.focus();
    };
    box.addEventListener("keydown", (event) => {
      if (event.isComposing) return;
      if (event.key === "Enter" && !event.shiftKey) send();
      else if (event.key === "Escape") cancel();
      else return;
      event.preventDefault();
      event.stopPropagation();
    });
    const choices = el("div", { class: "choices" }, button(null, "Cancel", cancel, { word: "Cancel" }), button(null, "Send as a new branch", send, { word: "Send", class: "small-primary" }));
    this.text.classList.add("is-edited");
    this.text.replaceChildren(box, choices);
    this.foot.replaceChildren();
    box.focus();
  }
}

class Answer extends Turn {
  constructor(node, app) {
    super(node, app, "answer", "Answer");
    this.pieces = new Pieces();
    this.body = el("div", { class: "body", dir: "auto", tabindex: "0", role: "group", "aria-label": "Answer: arrow keys walk through its tokens" });
    this.problem = el("div", { class: "problem", role: "alert", hidden: true });
    this.laneRoom = el("div", { class: "lane-room" });
    this.lane = null;
    this.isLaneOpen = null; // null: as the page's switch says
    this.root.append(this.body, this.problem, this.foot, this.laneRoom);
    app.alternatives.watch(this.body, node);
    this.body.addEventListener("token", ({ detail }) => { if (!node.isStreaming) this.lane?.chooseToken(detail); });
  }

  update() {
    this.draw();
    this.showLane();
    this.showProblem();
    this.showFoot();
  }

  /** Text and lane: what changes with every token. */
  draw() {
    const { node, app } = this;
    this.pieces.take(node.tokens);
    this.body.classList.toggle("is-waiting", node.isStreaming && node.text === "");
    this.body.classList.toggle("is-streaming", node.isStreaming);
    this.body.setAttribute("aria-busy", String(node.isStreaming));
    const isPlain = !app.isChat(node.model) || !app.settings.value("markdown");
    if (this.body.classList.toggle("plain", isPlain) !== this.wasPlain) {
      this.body.replaceChildren();
      this.body.blockKeys = [];
      this.plainKey = null;
      this.wasPlain = isPlain;
    }
    if (isPlain) this.drawPlain();
    else renderMarkdown(this.body, node.text, this.pieces);
    this.showLane();
  }

  /** Text as it is; only what is new is added. */
  drawPlain() {
    const { text } = this.node;
    const key = `${this.pieces.length}:${text}`;
    if (this.plainKey === key) return;
    const from = this.plainKey === null ? 0 : Math.min(this.shownTo, text.length);
    if (from === 0) this.body.replaceChildren();
    this.tail?.remove();
    this.shownTo = Math.min(this.pieces.length, text.length);
    this.body.append(...this.pieces.pieces(text.slice(from, this.shownTo), from));
    this.tail = this.shownTo < text.length ? el("span", {}, text.slice(this.shownTo)) : null;
    if (this.tail) this.body.append(this.tail);
    this.plainKey = key;
  }

  get hasRouting() {
    return this.node.tokens.some((token) => token.experts);
  }

  showLane() {
    const isOpen = (this.isLaneOpen ?? this.app.isLaneOpen) && this.hasRouting;
    if (isOpen && !this.lane) {
      this.lane = new Lane(this.node, this.app.shape(this.node.model), (layer, expert) => this.app.ban(this.node, layer, expert));
      this.laneRoom.replaceChildren(this.lane.root);
    } else if (!isOpen && this.lane) {
      this.lane = null;
      this.laneRoom.replaceChildren();
    }
    this.lane?.update();
  }

  showProblem() {
    const { error } = this.node;
    this.problem.hidden = !error;
    if (!error) return;
    const choices = [button(null, "Try again", () => this.app.retry(this.node), { word: "Try again", class: "small-primary", disabled: this.app.isBusy })];
    if (error.status === 401) choices.unshift(button(null, "Enter the key", () => this.app.openSettings("key"), { word: "Enter the key" }));
    this.problem.replaceChildren(el("p", {}, error.sentence), ...choices);
  }

  showFoot() {
    const { node, app } = this;
    if (node.isStreaming) {
      this.foot.replaceChildren(this.siblings() ?? "");
      return;
    }
    if (node.error && node.text === "") {
      this.foot.replaceChildren(this.siblings() ?? ""); // "Try again" is all there is to do
      return;
    }
    const isBusy = app.isBusy;
    const canGoOn = node.text !== "" && (node.finish === "length" || node.finish === "stopped");
    const isOpen = this.lane !== null;
    const experts = this.hasRouting && button("experts", isOpen ? "Hide the experts" : "Show the experts", () => {
      this.isLaneOpen = !isOpen;
      this.update();
      this.foot.querySelector("[aria-expanded]")?.focus();
    }, { "aria-expanded": String(isOpen), "aria-label": "Experts of this answer" });
    const parts = [
      this.siblings(),
      button("again", "Ask again", () => app.again(node), { disabled: isBusy }),
      canGoOn && button("more", "Go on", () => app.goOn(node), { disabled: isBusy }),
      this.copyButton(),
      experts,
      el("span", { class: "soft facts" }, this.facts()),
    ];
    this.foot.replaceChildren(...parts.filter(Boolean));
  }

  /** "84 tokens in 1.6 s · cut at max tokens" */
  facts() {
    const { usage, seconds, finish, experts } = this.node;
    const n = usage?.completion_tokens;
    const said = [];
    if (n && seconds) said.push(`${counted(n, "token")} in ${seconds.toFixed(seconds < 10 ? 1 : 0)} s`);
    if (finish === "length" || finish === "model_length") said.push("cut at max tokens");
    if (finish === "stopped") said.push("stopped");
    for (const [layer, expert] of experts?.ban ?? []) said.push(`without expert ${expert} of layer ${layer}`);
    return said.join(" · ");
  }
}
