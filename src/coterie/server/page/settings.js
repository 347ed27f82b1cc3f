// The settings drawer: a table of fields, read when a message is sent. Empty means the server's own default.

import { setKey } from "./api.js";
import { byId, el } from "./dom.js";

const GROUPS = [
  { title: "Instructions", fields: [
    { name: "system", label: "System message", kind: "text", rows: 4, hint: "What the model is told before the first turn." },
  ] },
  { title: "Sampling", fields: [
    { name: "temperature", label: "Temperature", min: 0, max: 2, step: 0.05, initial: 0.7, slider: true },
    { name: "top_p", label: "Top p", min: 0.01, max: 1, step: 0.01, slider: true, off: 1 },
    { name: "min_p", label: "Min p", min: 0, max: 1, step: 0.01, slider: true, off: 0 },
    { name: "top_k", label: "Top k", min: 0, max: 1000000, step: 1, off: 0 },
    { name: "max_tokens", label: "Max tokens", min: 1, max: 1000000, step: 1, initial: 512 },
    { name: "seed", label: "Seed", min: 0, max: 9007199254740991, step: 1, placeholder: "random" },
    { name: "presence_penalty", label: "Presence penalty", min: -2, max: 2, step: 0.1, off: 0 },
    { name: "frequency_penalty", label: "Frequency penalty", min: -2, max: 2, step: 0.1, off: 0 },
    { name: "repetition_penalty", label: "Repetition penalty", min: 0.01, max: 10, step: 0.01, off: 1 },
    { name: "stop", label: "Stop texts", kind: "text", rows: 2, hint: "One a line; the answer ends before any of them." },
  ] },
  { title: "What is shown", fields: [
    { name: "logprobs", label: "Token probabilities", kind: "flag", initial: true },
    { name: "routing", label: "Experts of each token", kind: "flag", initial: true },
    { name: "markdown", label: "Markdown", kind: "flag", initial: true },
  ] },
  { title: "This browser", fields: [
    { name: "key", label: "API key", kind: "secret", hint: "Kept until this tab is closed, and sent to this server alone." },
    { name: "keep", label: "Keep chats on this device", kind: "flag", initial: false },
  ] },
];
const SENT = ["temperature", "top_p", "min_p", "top_k", "max_tokens", "seed", "presence_penalty", "frequency_penalty", "repetition_penalty"];
const KEY = "coterie-key";

export class Settings {
  /** `onChange(name)` after each change. */
  constructor(onChange) {
    this.inputs = new Map();
    this.onChange = onChange;
    const form = byId("fields");
    form.addEventListener("submit", (event) => event.preventDefault());
    for (const { title, fields } of GROUPS) {
      form.append(el("fieldset", {}, el("legend", {}, title), ...fields.map((field) => this.row(field))));
    }
    const key = stored(KEY);
    this.inputs.get("key").value = key;
    setKey(key);
  }

  value(name) {
    const input = this.inputs.get(name);
    return input.type === "checkbox" ? input.checked : input.value;
  }

  set(name, value) {
    const input = this.inputs.get(name);
    if (input.type === "checkbox") input.checked = value;
    else input.value = value;
  }

  focus(name) {
    this.inputs.get(name).focus();
  }

  /** The name of the first field whose value cannot be sent, or null. */
  get wrong() {
    for (const [name, input] of this.inputs) if (!input.validity.valid) return name;
    return null;
  }

  /** Fields of a request. */
  body() {
    const body = {};
    for (const name of SENT) {
      const value = this.value(name);
      if (value !== "") body[name] = Number(value);
    }
    const stop = this.value("stop").split("\n").filter((line) => line !== "").slice(0, 16);
    if (stop.length) body.stop = stop;
    if (this.value("logprobs")) Object.assign(body, { logprobs: true, top_logprobs: 8 });
    return body;
  }

  row(field) {
    const id = `field-${field.name}`;
    const { input, extra } = this.control(field, id);
    this.inputs.set(field.name, input);
    input.addEventListener("change", () => this.changed(field.name));
    const hint = field.hint ? el("p", { class: "soft note", id: `${id}-hint` }, field.hint) : null;
    if (hint) input.setAttribute("aria-describedby", hint.id);
    const label = el("label", { for: id }, field.label);
    return el("div", { class: `field ${field.kind ?? "number"}` }, label, extra, input, hint);
  }

  control(field, id) {
    const { kind, initial } = field;
    if (kind === "text") return { input: el("textarea", { id, rows: field.rows, spellcheck: "false" }) };
    if (kind === "flag") {
      const input = el("input", { id, type: "checkbox", role: "switch" });
      input.checked = initial;
      return { input };
    }
    if (kind === "secret") return { input: el("input", { id, type: "password", autocomplete: "off", spellcheck: "false" }) };
    const { min, max, step } = field;
    const placeholder = field.placeholder ?? (field.off === undefined ? "" : String(field.off));
    const input = el("input", { id, type: "number", min, max, step: step === 1 ? 1 : "any", placeholder, inputmode: step === 1 ? "numeric" : "decimal" });
    if (initial !== undefined) input.value = initial;
    return { input, extra: field.slider ? this.slider(field, input) : null };
  }

  slider(field, input) {
    const { min, max, step } = field;
    const slider = el("input", { type: "range", min, max, step, "aria-label": field.label });
    slider.value = field.initial ?? field.off;
    slider.addEventListener("input", () => {
      input.value = slider.value;
      this.changed(field.name);
    });
    input.addEventListener("input", () => { slider.value = input.value === "" ? field.off ?? min : input.value; });
    return slider;
  }

  changed(name) {
    if (name === "key") {
      setKey(this.value("key").trim());
      try {
        sessionStorage.setItem(KEY, this.value("key").trim());
      } catch { /* a browser that keeps nothing */ }
    }
    this.inputs.get(name).setAttribute("aria-invalid", String(!this.inputs.get(name).validity.valid));
    this.onChange(name);
  }
}

function stored(name) {
  try {
    return sessionStorage.getItem(name) ?? "";
  } catch {
    return "";
  }
}
