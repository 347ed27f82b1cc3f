// Keys of the whole page, drawers, and the theme: light or dark as the machine is, until the button says otherwise.

import { byId, say } from "./dom.js";

const THEMES = ["auto", "light", "dark"];
const PLACE = "coterie-theme";

export function wireKeys(app) {
  const ask = byId("ask");
  ask.addEventListener("keydown", (event) => {
    if (event.isComposing) return;
    if (event.key === "Enter" && !event.shiftKey) {
      event.preventDefault();
      app.send();
    } else if (event.key === "ArrowUp" && ask.value === "" && !app.isBusy) {
      const edits = document.querySelectorAll(".question [aria-label='Edit and branch']");
      if (edits.length) event.preventDefault();
      edits[edits.length - 1]?.click();
    }
  });
  for (const id of ["chats", "settings"]) {
    byId(`open-${id}`).addEventListener("click", () => app.openDrawer(id));
    byId(id).querySelector("[data-close]").addEventListener("click", () => app.openDrawer(id, false));
  }
  document.addEventListener("keydown", (event) => {
    if (event.isComposing) return;
    if (event.key === "Escape") escape(app, event);
    if (!event.altKey || event.ctrlKey || event.metaKey || event.shiftKey) return;
    const does = {
      KeyN: () => app.newChat(),
      KeyE: () => byId("toggle-lane").click(),
      KeyS: () => app.openDrawer("settings"),
    }[event.code];
    if (!does) return;
    event.preventDefault();
    does();
  });
}

function escape(app, event) {
  if (document.querySelector("dialog[open]")) return; // closes itself
  if (!byId("alternatives").hidden) app.alternatives.hide();
  else if (app.isBusy) app.stop();
  else {
    const open = ["settings", "chats"].find((id) => !byId(id).hidden);
    if (!open) return;
    app.openDrawer(open, false);
  }
  event.preventDefault();
}

export function wireTheme() {
  let theme = "auto";
  try {
    theme = localStorage.getItem(PLACE) ?? "auto";
  } catch { /* as the machine is */ }
  const show = () => {
    if (theme === "auto") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = theme;
    byId("theme").setAttribute("aria-label", `Theme: ${theme}`);
    byId("theme").title = `Theme: ${theme}`;
  };
  if (!THEMES.includes(theme)) theme = "auto";
  show();
  byId("theme").addEventListener("click", () => {
    theme = THEMES[(THEMES.indexOf(theme) + 1) % THEMES.length];
    show();
    say(`Theme: ${theme}`);
    try {
      if (theme === "auto") localStorage.removeItem(PLACE);
      else localStorage.setItem(PLACE, theme);
    } catch { /* for this tab only */ }
  });
}
