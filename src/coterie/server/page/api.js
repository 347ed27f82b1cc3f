// What the page asks of the server it came from: models, a streamed answer, the prompt as the model reads it.

import { eventsOf } from "./sse.js";

/** A failure in one sentence. `code` and `retryAfter` (seconds) as the server said them. */
export class Failure extends Error {
  constructor(sentence, { status = 0, code = null, retryAfter = null } = {}) {
    super(sentence);
    Object.assign(this, { status, code, retryAfter });
  }
}

let key = "";

export function setKey(value) {
  key = value;
}

async function ask(path, body = null, signal = null) {
  const headers = key ? { authorization: `Bearer ${key}` } : {};
  if (body) headers["content-type"] = "application/json";
  let response;
  try {
    const content = body ? JSON.stringify(body) : null;
    response = await fetch(path, { method: body ? "POST" : "GET", headers, body: content, signal, cache: "no-store" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Failure("The server cannot be reached. Your text is kept: try again when it is back.");
  }
  if (!response.ok) throw await failureOf(response);
  return response;
}

async function failureOf(response) {
  let error = {};
  try {
    const body = await response.json();
    error = (body && typeof body.error === "object" && body.error) || body || {};
  } catch { /* not JSON: the status has to do */ }
  const seconds = Number.parseInt(response.headers.get("retry-after") ?? "", 10);
  const about = { status: response.status, code: error.code ?? null, retryAfter: seconds > 0 ? Math.min(seconds, 600) : null };
  return new Failure(sentenceOf(response.status, error, about.retryAfter), about);
}

function sentenceOf(status, error, seconds) {
  const later = seconds ? `try again in ${seconds} s` : "try again in a moment";
  const said = typeof error.message === "string" ? error.message.slice(0, 400) : "";
  if (status === 401) return "This server needs an API key: enter it in the settings.";
  if (error.code === "context_length_exceeded") {
    const { n_prompt_tokens: n, n_ctx: limit } = error;
    const sizes = n && limit ? ` (${n.toLocaleString("en")} tokens, and it takes ${limit.toLocaleString("en")})` : "";
    return `The conversation is too long for this model${sizes}: edit an earlier turn, lower max tokens or start a new chat.`;
  }
  if (status === 429) return `The server is busy: ${later}.`;
  if (status === 503) return `The server is not ready (${said || "no reason given"}): ${later}.`;
  return said ? `${said[0].toUpperCase()}${said.slice(1)}.`.replace(/([.!?])\.$/, "$1") : `The server answered with status ${status}.`;
}

export async function listModels() {
  return (await (await ask("v1/models")).json()).data ?? [];
}

export async function showModel(id) {
  return (await ask(`v1/models/${id.split("/").map(encodeURIComponent).join("/")}`)).json();
}

export async function showPrompt(body) {
  return (await ask("apply-template", body)).json();
}

/** Calls `onChunk` with each chunk; resolves at [DONE]. Raises Failure, or AbortError after `signal`. */
export async function streamChat(body, signal, onChunk) {
  const response = await ask("v1/chat/completions", { ...body, stream: true, stream_options: { include_usage: true } }, signal);
  let isDone = false;
  try {
    for await (const data of eventsOf(response.body)) {
      if (data === "[DONE]") {
        isDone = true; // read on: the server closes, so that it is not taken for a reader who left
        continue;
      }
      const chunk = JSON.parse(data);
      onChunk(chunk);
      if (chunk.error) throw new Failure(sentenceOf(500, chunk.error, null), { code: chunk.error.code ?? null });
    }
  } catch (error) {
    if (error instanceof Failure || error.name === "AbortError") throw error;
    throw new Failure("The connection broke in the middle of the answer; what had come is kept.");
  }
  if (!isDone) throw new Failure("The server stopped in the middle of the answer; what had come is kept.");
}
