// What else a token could have been: shown where the pointer or the cursor is, and a click goes on from there.

import { byId, el, percent, say } from "./dom.js";

const STRICT = new TextDecoder("utf-8", { fatal: true });

export class Alternatives {
  /** `onBranch(node, i, alternative)`; alternative is {token, logprob, isEnd}. */
  constructor(onBranch) {
    this.onBranch = onBranch;
    this.pop = byId("alternatives");
    this.timer = 0;
    this.body = null; // the answer's body that has the cursor
    this.marked = [];
    this.pop.addEventListener("pointerenter", () => clearTimeout(this.timer));
    this.pop.addEventListener("pointerleave", () => this.hideSoon());
    this.pop.addEventListener("keydown", (event) => this.pressedInside(event));
    document.addEventListener("pointerdown", (event) => {
      if (!this.pop.contains(event.target) && !event.target.closest?.(".t")) this.hide();
    });
    byId("scroll").addEventListener("scroll", () => { if (!this.isHeld) this.hide(); }, { passive: true });
  }

  /** Makes the tokens of an answer's body answer to pointer, finger and keys. */
  watch(body, node) {
    const tokenAt = (event) => event.target.closest?.(".t");
    body.addEventListener("pointerover", (event) => {
      const span = tokenAt(event);
      if (!span || event.pointerType !== "mouse" || this.isHeld) return;
      clearTimeout(this.timer);
      this.timer = setTimeout(() => this.show(body, node, Number(span.dataset.i), span), this.pop.hidden ? 250 : 80);
    });
    body.addEventListener("pointerleave", () => this.hideSoon());
    body.addEventListener("click", (event) => {
      const span = tokenAt(event);
      if (!span || event.target.closest("a, button") || String(getSelection())) return;
      this.show(body, node, Number(span.dataset.i), span);
    });
    body.addEventListener("keydown", (event) => this.pressed(event, body, node));
    body.addEventListener("blur", () => { if (!this.pop.contains(document.activeElement)) this.hideSoon(); });
  }

  get isHeld() {
    return !this.pop.hidden && this.pop.contains(document.activeElement);
  }

  hideSoon() {
    clearTimeout(this.timer);
    this.timer = setTimeout(() => { if (!this.isHeld) this.hide(); }, 200);
  }

  hide() {
    clearTimeout(this.timer);
    const wasHeld = this.isHeld;
    this.pop.hidden = true;
    for (const span of this.marked) span.classList.remove("is-cursor");
    this.marked = [];
    if (wasHeld) this.body?.focus();
  }

  show(body, node, i, span) {
    const token = node.tokens[i];
    if (!token?.top || !span.isConnected) return;
    this.hide();
    Object.assign(this, { body, node, i });
    this.marked = [...body.querySelectorAll(`.t[data-i="${i}"]`)];
    for (const part of this.marked) part.classList.add("is-cursor");
    this.fill(token);
    this.pop.hidden = false;
    this.put(span.getClientRects()[0] ?? span.getBoundingClientRect());
    body.dispatchEvent(new CustomEvent("token", { detail: i }));
  }

  fill(token) {
    const isSame = (other) => other.token === token.text && Math.abs(other.logprob - token.logprob) < 1e-4;
    const all = token.top.some(isSame) ? token.top : [...token.top, { token: token.text, logprob: token.logprob, bytes: null }];
    const rest = 1 - all.reduce((sum, other) => sum + Math.exp(other.logprob), 0);
    const rows = all.map((other) => this.row(other, isSame(other)));
    const note = this.node.isStreaming ? "Branch when the answer is done" : "Click to go on from there";
    this.pop.replaceChildren(el("ul", {}, ...rows), el("p", { class: "soft" }, note, rest > 0.0005 ? el("span", {}, `others ${percent(rest)}`) : null));
  }

  row(other, isChosen) {
    const share = Math.exp(other.logprob);
    const isEnd = other.bytes?.length === 0;
    const isPart = !isEnd && !isWhole(other);
    const label = `${isEnd ? "end of the answer" : visible(other.token)}, ${percent(share)}${isChosen ? ", chosen" : ""}${isPart ? ", part of a character" : ""}`;
    const word = isEnd ? el("span", { class: "soft" }, `end ${other.token}`) : isPart ? el("span", { class: "soft" }, "part of a character") : visible(other.token);
    const row = el("button", {
      type: "button", class: "alternative", "aria-label": label, "aria-current": isChosen ? "true" : null,
      disabled: isPart || this.node.isStreaming,
      on: { click: () => this.choose({ ...other, isEnd }, isChosen) },
    }, el("span", { class: "mono word" }, word), el("span", { class: "share-bar" }), el("span", { class: "chance" }, percent(share)));
    row.style.setProperty("--share", share.toFixed(4));
    return el("li", {}, row);
  }

  choose(other, isChosen) {
    const { node, i } = this;
    this.hide();
    if (!isChosen) this.onBranch(node, i, other);
  }

  put(rect) {
    const { innerWidth, innerHeight } = window;
    const { offsetWidth: width, offsetHeight: height } = this.pop;
    const left = Math.max(8, Math.min(rect.left - 10, innerWidth - width - 8));
    const below = rect.bottom + 4;
    const top = below + height < innerHeight - 8 || rect.top < height + 12 ? Math.min(below, innerHeight - height - 8) : rect.top - height - 4;
    this.pop.style.setProperty("left", `${left}px`);
    this.pop.style.setProperty("top", `${Math.max(8, top)}px`);
  }

  /** Arrows walk through the tokens of a body that has the focus. */
  pressed(event, body, node) {
    if (event.target !== body || event.altKey || event.ctrlKey || event.metaKey || !node.tokens.length) return;
    const isHere = this.body === body && !this.pop.hidden;
    const steps = { ArrowLeft: -1, ArrowRight: 1 };
    if (event.key in steps) this.walk(body, node, isHere ? this.i : -1, steps[event.key]);
    else if ((event.key === "ArrowDown" || event.key === "Enter") && isHere) this.pop.querySelector("button:not(:disabled)")?.focus();
    else if (event.key === "Escape" && isHere) this.hide();
    else return;
    event.preventDefault();
    event.stopPropagation();
  }

  walk(body, node, from, step) {
    for (let i = Math.max(0, from + step); i < node.tokens.length && i >= 0; i += step) {
      const span = body.querySelector(`.t[data-i="${i}"]`);
      if (span && node.tokens[i].top) {
        span.scrollIntoView({ block: "nearest" });
        this.show(body, node, i, span);
        const token = node.tokens[i];
        const best = token.top.slice(0, 3).map((other) => `${visible(other.token)} ${percent(Math.exp(other.logprob))}`);
        say(`${visible(token.text)}, ${percent(Math.exp(token.logprob))}. ${best.join(", ")}`);
        return;
      }
      if (step < 0 && i === 0) return;
    }
  }

  pressedInside(event) {
    const rows = [...this.pop.querySelectorAll("button:not(:disabled)")];
    const at = rows.indexOf(document.activeElement);
    if (event.key === "ArrowDown") rows[Math.min(at + 1, rows.length - 1)]?.focus();
    else if (event.key === "ArrowUp" && at > 0) rows[at - 1].focus();
    else if (event.key === "Escape" || event.key === "ArrowUp" || event.key === "Tab") this.hide();
    else return;
    event.preventDefault();
    event.stopPropagation();
  }
}

function isWhole({ bytes }) {
  try {
    STRICT.decode(Uint8Array.from(bytes ?? []));
    return true;
  } catch {
    return false;
  }
}

function visible(text) {
  return text.replace(/^ | $/g, "␣").replace(/\r?\n/g, "↵").replace(/\t/g, "⇥") || "·";
}
