// Elements without markup: text always becomes a text node, so nothing a model writes is ever read as HTML.

/** el("button", {class: "quiet", type: "button", on: {click: f}, "aria-label": "Stop"}, "text", node, null) */
export function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name === "on") {
      for (const [type, listener] of Object.entries(value)) node.addEventListener(type, listener);
    } else if (name === "data") {
      Object.assign(node.dataset, value);
    } else {
      node.setAttribute(name, value === true ? "" : value);
    }
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

const SVG = "http://www.w3.org/2000/svg";

export function svg(tag, attributes = {}, ...children) {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

/** A picture from the sprite in index.html. */
export function icon(name) {
  return svg("svg", { class: "icon", "aria-hidden": "true", viewBox: "0 0 20 20" }, svg("use", { href: `#i-${name}` }));
}

/** A button of an icon, or of an icon and a word. */
export function button(name, label, onClick, { word = null, ...rest } = {}) {
  const attributes = { type: "button", class: "quiet", "aria-label": word ? null : label, title: label, on: { click: onClick } };
  return el("button", { ...attributes, ...rest }, name ? icon(name) : null, word);
}

export function byId(id) {
  return document.getElementById(id);
}

/** Says it to a screen reader, once. */
export function say(text) {
  byId("said").textContent = text;
}

/** Calls of `work` within one frame become one. */
export function oncePerFrame(work) {
  let isDue = false;
  return () => {
    if (isDue) return;
    isDue = true;
    const go = () => {
      if (!isDue) return;
      isDue = false;
      work();
    };
    if (document.hidden) setTimeout(go, 100);
    else requestAnimationFrame(go);
  };
}

export async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    say("Copied");
    return true;
  } catch {
    return false;
  }
}

export function percent(share) {
  const value = share * 100;
  return value >= 99.95 ? "100 %" : value >= 10 ? `${value.toFixed(0)} %` : value >= 0.1 ? `${value.toFixed(1)} %` : "< 0.1 %";
}

export function counted(n, word) {
  return `${n.toLocaleString("en")} ${word}${n === 1 ? "" : "s"}`;
}
