// Where the tokens of an answer begin, so that any piece of its text can be split among them.

import { el } from "./dom.js";

/** Tokens by their place in the text: their texts, one after the other, are its beginning. */
export class Pieces {
  constructor() {
    this.starts = [];
    this.length = 0; // of all tokens' texts
  }

  take(tokens) {
    for (let i = this.starts.length; i < tokens.length; i += 1) {
      this.starts.push(this.length);
      this.length += tokens[i].text.length;
    }
  }

  /** How many tokens begin before `at`: what a piece that ends there depends on. */
  nBefore(at) {
    let low = 0;
    let high = this.starts.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.starts[middle] < at) low = middle + 1;
      else high = middle;
    }
    return low;
  }

  /** Nodes for this text, which stands at `at`: a span for each token, with its number. */
  pieces(text, at) {
    const end = at + text.length;
    const nodes = [];
    let i = Math.max(0, this.nBefore(at + 1) - 1);
    let from = at;
    while (from < end && from < this.length) {
      while (i + 1 < this.starts.length && this.starts[i + 1] <= from) i += 1;
      const to = Math.min(end, this.starts[i + 1] ?? this.length);
      nodes.push(el("span", { class: "t", data: { i } }, text.slice(from - at, to - at)));
      from = to;
    }
    if (from < end) nodes.push(document.createTextNode(text.slice(from - at)));
    return nodes;
  }
}
