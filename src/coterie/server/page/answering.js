// From a question to an answer: the request, its chunks into the node, the end in one word.

import { Failure, streamChat } from "./api.js";
import { messagesOf } from "./conversation.js";
import { byId } from "./dom.js";

/** Fills `node` (whose text may have begun) until the end, a failure, or `signal`. Never throws. */
export async function fill(node, app, signal) {
  Object.assign(node, { isStreaming: true, error: null, finish: null, model: modelOf(node, app), usage: null });
  const heard = new Heard(node.text);
  const start = performance.now();
  closeGap(node);
  try {
    await streamChat(requestFor(node, app), signal, (chunk) => {
      take(node, chunk);
      heard.take(node.text);
      app.onProgress(node);
    });
    node.finish ??= "stop";
  } catch (error) {
    if (error.name === "AbortError") {
      node.finish = "stopped";
    } else {
      const isOurs = error instanceof Failure;
      node.finish = "error";
      node.error = { sentence: isOurs ? error.message : "The page failed on this answer; what had come is kept.", status: error.status ?? 0, code: error.code ?? null };
      if (!isOurs) console.error(error);
    }
  }
  heard.end(node.text);
  node.isStreaming = false;
  node.seconds = (performance.now() - start) / 1000;
}

/** An answer that has begun goes on with the model it began with. */
function modelOf(node, app) {
  return (node.text !== "" && node.model) || app.model;
}

/** Tokens are told a little later than text: what an answer that was stopped lacks is one token, of which nothing is known. */
function closeGap(node) {
  const known = node.tokens.reduce((n, { text }) => n + text.length, 0);
  if (node.text.length > known) node.tokens.push({ text: node.text.slice(known), logprob: null, top: null, experts: null, weights: null });
}

/** The request for this answer, with all that the page wants to know of it. */
export function requestFor(node, app) {
  const path = [];
  for (let turn = node; turn.parent; turn = turn.parent) path.unshift(turn);
  const model = modelOf(node, app);
  const isSparse = app.shape(model)?.is_sparse !== false;
  return {
    model,
    ...messagesOf(path, app.settings.value("system"), app.isChat(model)),
    ...app.settings.body(),
    ...(isSparse && app.settings.value("routing") ? { return_routing: "stream" } : {}),
    ...(node.experts ? { experts: node.experts } : {}),
  };
}

function take(node, chunk) {
  if (chunk.usage) node.usage = chunk.usage;
  const choice = chunk.choices?.[0];
  if (!choice) return;
  node.text += choice.delta?.content ?? "";
  node.tokens.push(...tokensOf(choice));
  if (choice.finish_reason) node.finish = choice.finish_reason;
}

/** Log-probabilities and routing of one chunk, token by token. A token without text may have one of the two only. */
export function tokensOf({ logprobs, routing }) {
  const entries = logprobs?.content ?? [];
  const texts = routing?.tokens;
  if (!texts?.length) return entries.map((entry) => token(entry.token, entry, null, null));
  const found = [];
  let k = 0;
  texts.forEach((text, i) => {
    const entry = entries[k]?.token === text ? entries[k] : null;
    if (entry) k += 1;
    found.push(token(text, entry, routing.experts[i], routing.weights[i]));
  });
  return found;
}

function token(text, entry, experts, weights) {
  return { text, logprob: entry?.logprob ?? null, top: entry?.top_logprobs?.length ? entry.top_logprobs : null, experts, weights };
}

/** Tells a screen reader the answer in whole sentences, not in tokens. */
class Heard {
  constructor(text) {
    this.n = text.length;
    byId("heard").replaceChildren();
  }

  take(text) {
    const end = Math.max(text.lastIndexOf(". "), text.lastIndexOf("\n"), text.lastIndexOf("? "), text.lastIndexOf("! "));
    if (end > this.n + 40) this.tell(text.slice(this.n, end + 1), end + 1);
  }

  end(text) {
    this.tell(text.slice(this.n), text.length);
  }

  tell(text, n) {
    this.n = n;
    if (!text.trim()) return;
    const part = document.createElement("p");
    part.textContent = text;
    byId("heard").append(part);
  }
}
