// The conversations of this tab, in memory. Only if asked are they kept in this browser, without tokens and routing.

import { Conversation } from "./conversation.js";
import { button, byId, el } from "./dom.js";

const PLACE = "coterie-chats";

export class Chats {
  constructor(app) {
    this.app = app;
    this.all = [new Conversation()];
    this.current = this.all[0];
    this.load();
  }

  start() {
    if (this.current.root.children.length) {
      this.current = new Conversation();
      this.all.unshift(this.current);
    }
    this.app.render();
  }

  open(chat) {
    this.app.stop();
    this.current = chat;
    this.app.render();
    this.app.toEnd();
  }

  remove(chat) {
    if (chat === this.current) this.app.stop();
    this.all = this.all.filter((other) => other !== chat);
    if (!this.all.length) this.all = [new Conversation()];
    if (chat === this.current) this.current = this.all[0];
    this.app.forget();
    this.app.render();
    this.keep();
    (byId("chat-list").querySelector("button") ?? byId("ask")).focus();
  }

  render() {
    const kept = this.app.settings.value("keep");
    byId("kept-note").textContent = kept ? "Kept in this browser." : "Gone when this tab is closed.";
    const rows = this.all.filter((chat) => chat.title).map((chat) => {
      const isCurrent = chat === this.current;
      return el("li", { class: isCurrent ? "is-current" : null },
        el("button", { type: "button", class: "chat-name", "aria-current": isCurrent ? "true" : null, on: { click: () => this.open(chat) } }, chat.title),
        button("trash", `Delete ${chat.title}`, () => this.remove(chat)));
    });
    byId("chat-list").replaceChildren(...rows);
  }

  keep() {
    try {
      if (!this.app.settings.value("keep")) localStorage.removeItem(PLACE);
      else localStorage.setItem(PLACE, JSON.stringify(this.all.filter((chat) => chat.title).slice(0, 100).map((chat) => chat.toJSON({ isBrief: true }))));
    } catch {
      this.app.notice("This browser does not keep chats (its storage is full or off).");
    }
    this.render();
  }

  load() {
    try {
      const stored = JSON.parse(localStorage.getItem(PLACE) ?? "null");
      if (!stored) return;
      this.all = [new Conversation(), ...stored.map((chat) => Conversation.from(chat))];
      this.current = this.all[0];
      this.app.settings.set("keep", true);
    } catch { /* nothing is kept, or nothing that can be read */ }
  }
}
