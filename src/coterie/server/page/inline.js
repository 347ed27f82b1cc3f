// Inline markdown: emphasis, code, links. One pass, bounded looks ahead, so that no text is slow to read.

import { el } from "./dom.js";

const SPECIAL = /[\\`*_~[!<\nhH]/g;
const PUNCTUATION = /[!-/:-@[-`{-~]/;
const BARE = /https?:\/\/[^\s<>"'`\\]{1,2000}/iy;
const ANGLE = /<(https?:\/\/[^\s<>]{1,2000}|[\w.+-]{1,64}@[\w-]{1,63}(?:\.[\w-]{1,63}){1,8})>/iy;
const WORD = /[\p{L}\p{N}_]/u;
const MOST_DEPTH = 6;
const LOOK_AHEAD = 2000;
const SAFE = new Set(["http:", "https:", "mailto:"]);

/** Nodes for the text of these lines, which is joined by line breaks. */
export function renderInline(lines, place) {
  const text = lines.map((line) => line.text).join("\n");
  const starts = [];
  let at = 0;
  for (const line of lines) {
    starts.push({ from: at, at: line.at });
    at += line.text.length + 1;
  }
  return new Reader(text, starts, place).read(0, text.length, 0);
}

/** The address if it may be followed, else null. No other scheme, and nothing relative to this server. */
export function safeUrl(href) {
  try {
    const url = new URL(href);
    return SAFE.has(url.protocol) && href.length <= 2000 ? url.href : null;
  } catch {
    return null;
  }
}

class Reader {
  constructor(text, starts, place) {
    Object.assign(this, { text, starts, place });
    this.isInLink = false; // a link holds no other
    this.hopeless = new Map(); // a mark, and from where on nothing closes it
  }

  read(from, to, depth) {
    const out = [];
    let plain = from;
    let i = from;
    const flush = (end) => {
      if (end > plain) out.push(...this.plain(plain, end));
    };
    while (i < to) {
      SPECIAL.lastIndex = i;
      const found = SPECIAL.exec(this.text);
      if (!found || found.index >= to) break;
      i = found.index;
      const special = this.special(i, to, depth);
      if (!special) {
        i += 1;
        continue;
      }
      flush(i);
      out.push(...special.nodes);
      i = special.end;
      plain = i;
    }
    flush(to);
    return out;
  }

  /** Text as it is, in pieces where tokens begin; it may span lines. */
  plain(from, to) {
    const nodes = [];
    let k = 0;
    for (let high = this.starts.length; high - k > 1; ) {
      const middle = (k + high) >> 1;
      if (this.starts[middle].from <= from) k = middle;
      else high = middle;
    }
    for (let i = from; i < to; ) {
      const next = Math.min(to, this.starts[k + 1]?.from ?? to);
      nodes.push(...this.place.pieces(this.text.slice(i, next), this.starts[k].at + i - this.starts[k].from));
      i = next;
      k += 1;
    }
    return nodes;
  }

  special(i, to, depth) {
    switch (this.text[i]) {
      case "\n": return { nodes: [el("br")], end: i + 1 };
      case "\\": return i + 1 < to && PUNCTUATION.test(this.text[i + 1]) ? { nodes: this.plain(i + 1, i + 2), end: i + 2 } : null;
      case "`": return this.code(i, to);
      case "*": case "_": case "~": return depth < MOST_DEPTH ? this.emphasis(i, to, depth) : null;
      case "[": return depth < MOST_DEPTH ? this.link(i, to, depth) : null;
      case "!": return this.text[i + 1] === "[" ? this.image(i, to) : null;
      case "<": return this.angle(i, to);
      default: return this.bare(i, to);
    }
  }

  /** Where `mark` is next, from `from` on; remembers when there is none. */
  find(mark, from, to) {
    if (from >= (this.hopeless.get(mark) ?? Infinity)) return -1;
    const at = this.text.indexOf(mark, from);
    if (at < 0) this.hopeless.set(mark, from);
    return at < 0 || at + mark.length > Math.min(to, from + LOOK_AHEAD) ? -1 : at;
  }

  run(i, c) {
    let end = i;
    while (this.text[end] === c) end += 1;
    return end - i;
  }

  code(i, to) {
    const n = this.run(i, "`");
    const mark = "`".repeat(n);
    let end = i + n;
    for (;;) {
      end = this.find(mark, end, to);
      if (end < 0) return { nodes: this.plain(i, Math.min(i + n, to)), end: Math.min(i + n, to) };
      const length = this.run(end, "`");
      if (length === n) break;
      end += length;
    }
    return { nodes: [el("code", {}, ...this.plain(i + n, end))], end: end + n };
  }

  emphasis(i, to, depth) {
    const c = this.text[i];
    const length = this.run(i, c);
    const n = c === "~" ? 2 : Math.min(length, 3);
    const isWordBefore = i > 0 && WORD.test(this.text[i - 1]);
    const skip = { nodes: this.plain(i, Math.min(i + length, to)), end: Math.min(i + length, to) };
    if (length < n || length > 3 || (c === "_" && isWordBefore)) return skip;
    const open = i + n;
    if (open >= to || /\s/.test(this.text[open])) return skip;
    const mark = c.repeat(n);
    for (let end = this.find(mark, open + 1, to); end >= 0; end = this.find(mark, end, to)) {
      const closing = this.run(end, c);
      const isClosing = closing === n || (closing === 3 && n < 3);
      const isWordAfter = WORD.test(this.text[end + closing] ?? " ");
      if (isClosing && !/\s/.test(this.text[end - 1]) && !(c === "_" && isWordAfter)) {
        const at = end + closing - n; // of three that close, the inner ones belong to the inner text
        const inner = this.read(open, at, depth + 1);
        const node = c === "~" ? el("del", {}, ...inner)
          : n === 1 ? el("em", {}, ...inner)
          : n === 2 ? el("strong", {}, ...inner) : el("strong", {}, el("em", {}, ...inner));
        return { nodes: [node], end: at + n };
      }
      end += closing;
    }
    return skip;
  }

  /** [label](address "title") from `i`: {label: [from, to], href, end}, or null. */
  target(i, to) {
    if (this.isInLink || this.find("](", i, to) < 0) return null;
    const limit = Math.min(to, i + LOOK_AHEAD);
    let depth = 0;
    let close = i;
    for (; close < limit; close += 1) {
      const c = this.text[close];
      if (c === "\\") close += 1;
      else if (c === "[") depth += 1;
      else if (c === "]" && (depth -= 1) === 0) break;
    }
    if (close >= limit || this.text[close + 1] !== "(") return null;
    let end = close + 2;
    let nested = 0;
    for (; end < limit; end += 1) {
      const c = this.text[end];
      if (c === "\\") end += 1;
      else if (c === "(") nested += 1;
      else if (c === ")" && (nested -= 1) < 0) break;
      else if (c === "\n") return null;
    }
    if (end >= limit) return null;
    const inside = this.text.slice(close + 2, end).trim();
    const href = inside.startsWith("<") ? inside.slice(1).split(">")[0] : inside.split(/\s+["'(]/)[0];
    return { label: [i + 1, close], href: href.replace(/\\([!-/:-@[-`{-~])/g, "$1"), end: end + 1 };
  }

  link(i, to, depth) {
    const target = this.target(i, to);
    if (!target) return null;
    this.isInLink = true;
    const label = this.read(...target.label, depth + 1);
    this.isInLink = false;
    const url = safeUrl(target.href);
    if (!url) return { nodes: [el("span", { class: "dead-link", title: "This link is not followed: only http, https and mailto are." }, ...label)], end: target.end };
    return { nodes: anchor(url, label, this.text.slice(...target.label)), end: target.end };
  }

  /** A picture is a link to it at most: nothing is fetched before somebody asks. */
  image(i, to) {
    const target = this.target(i + 1, to);
    if (!target) return null;
    const [from, end] = target.label;
    const label = ["Picture: ", ...(end > from ? this.plain(from, end) : ["no description"])];
    const url = safeUrl(target.href);
    const nodes = url?.startsWith("http") ? anchor(url, label, url) : [el("span", { class: "dead-link" }, ...label)];
    return { nodes, end: target.end };
  }

  angle(i, to) {
    if (this.isInLink) return null;
    ANGLE.lastIndex = i;
    const found = ANGLE.exec(this.text);
    if (!found || ANGLE.lastIndex > to) return null;
    const url = safeUrl(/^https?:/i.test(found[1]) ? found[1] : `mailto:${found[1]}`);
    return url && { nodes: anchor(url, this.plain(i + 1, i + 1 + found[1].length), url), end: i + found[0].length };
  }

  bare(i, to) {
    if (this.isInLink) return null;
    if (i > 0 && WORD.test(this.text[i - 1])) return null;
    BARE.lastIndex = i;
    const found = BARE.exec(this.text);
    if (!found) return null;
    let address = found[0].slice(0, to - i).replace(/[.,;:!?*_~'"\]]+$/, "");
    if (address.endsWith(")") && !address.includes("(")) address = address.replace(/[).,;:!?]+$/, "");
    const url = safeUrl(address);
    return url && { nodes: anchor(url, this.plain(i, i + address.length), url), end: i + address.length };
  }
}

/** A link that tells the other side nothing. One whose words look like another address says where it goes. */
function anchor(url, label, words) {
  const { host, protocol } = new URL(url);
  const looksLikeOne = /\w\.\w|:\/\//.test(words) && !words.toLowerCase().includes(host);
  const node = el("a", { href: url, rel: "noopener noreferrer nofollow", target: "_blank", title: url, referrerpolicy: "no-referrer" }, ...label);
  return looksLikeOne && protocol !== "mailto:" ? [node, el("span", { class: "goes-to" }, ` (${host})`)] : [node];
}
