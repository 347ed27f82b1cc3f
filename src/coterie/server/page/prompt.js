// The prompt as the model reads it, and the conversation as a file.

import { showPrompt } from "./api.js";
import { requestFor } from "./answering.js";
import { newNode } from "./conversation.js";
import { byId, counted, el } from "./dom.js";

export async function showThePrompt(app) {
  const node = newNode(app.conversation.last, "user", byId("ask").value);
  const { model, messages, continue_final_message } = requestFor(node.text ? node : app.conversation.last, app);
  if (!messages?.some((message) => message.content)) {
    app.notice("There is no prompt yet: write something first.");
    return;
  }
  try {
    const { token_strs: pieces, count, max_model_len: limit, chat_form: form } = await showPrompt({ model, messages, continue_final_message });
    app.notice(null);
    byId("prompt-about").textContent = `${counted(count, "token")} of ${limit.toLocaleString("en")} · ${form ? `chat form ${form}` : "no chat form: the text as it is"}`;
    byId("prompt-text").replaceChildren(...pieces.map((piece) => el("span", { class: "piece" }, piece.replace(/▁/g, " ").replace(/^<0x0A>$/, "↵\n"))));
    byId("prompt").showModal();
  } catch (error) {
    app.notice(error.message);
  }
}

export function exportJson(app) {
  const settings = { ...app.settings.body(), system: app.settings.value("system") };
  const data = { ...app.conversation.toJSON(), model: app.model, settings };
  const url = URL.createObjectURL(new Blob([JSON.stringify(data, null, 1)], { type: "application/json" }));
  el("a", { href: url, download: "conversation.json" }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10000);
}
