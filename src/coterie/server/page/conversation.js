// A conversation is a tree: editing a turn or asking again adds a sibling, and each turn remembers which of the turns
// after it is shown. What is shown is one path from the root.

let lastId = 0;

/** One turn. `tokens` are {text, logprob, top, experts, weights}; those of the text's beginning may be all there are. */
export function newNode(parent, role, text = "") {
  lastId += 1;
  return {
    id: lastId, parent, role, text, tokens: [], children: [], chosen: 0,
    model: null, finish: null, error: null, usage: null, seconds: null, experts: null, isStreaming: false,
  };
}

export class Conversation {
  constructor() {
    this.root = newNode(null, "root");
    this.key = `c${this.root.id}-${Date.now()}`;
  }

  add(parent, role, text = "") {
    const node = newNode(parent, role, text);
    parent.children.push(node);
    parent.chosen = parent.children.length - 1;
    return node;
  }

  /** The turns shown, first to last. */
  path() {
    const found = [];
    for (let node = this.root; node.children.length; ) {
      node = node.children[node.chosen];
      found.push(node);
    }
    return found;
  }

  get last() {
    return this.path().at(-1) ?? this.root;
  }

  get title() {
    const first = this.root.children[this.root.chosen];
    return first ? first.text.trim().split("\n")[0].slice(0, 80) : "";
  }

  /** Shows the sibling `step` places on, if there is one. */
  turn(node, step) {
    const place = node.parent.children.indexOf(node) + step;
    if (place < 0 || place >= node.parent.children.length) return false;
    node.parent.chosen = place;
    return true;
  }

  remove(node) {
    const { parent } = node;
    parent.children.splice(parent.children.indexOf(node), 1);
    parent.chosen = Math.max(0, Math.min(parent.chosen, parent.children.length - 1));
  }

  /** All of the tree, with routing and probabilities; `{isBrief: true}` without. */
  toJSON({ isBrief = false } = {}) {
    const plain = (node) => {
      const { parent, id, isStreaming, tokens, children, ...rest } = node;
      return { ...rest, ...(isBrief ? {} : { tokens }), children: children.map(plain) };
    };
    return { format: "coterie-conversation", version: 1, title: this.title, root: plain(this.root) };
  }

  /** From what toJSON made and this browser kept; anything else throws. */
  static from(stored) {
    const made = new Conversation();
    const read = (from, parent) => {
      const node = newNode(parent, String(from.role), String(from.text));
      for (const name of ["model", "finish", "usage", "seconds"]) node[name] = from[name] ?? null;
      node.children = from.children.map((child) => read(child, node));
      node.chosen = Math.max(0, Math.min(Number(from.chosen) || 0, node.children.length - 1));
      return node;
    };
    made.root = read(stored.root, null);
    return made;
  }
}

/** The messages of a request for these turns, the last of them perhaps an answer to go on with.
 *
 * A base model has no turns, only text: everything is one message, and an answer goes on exactly where it stands.
 */
export function messagesOf(path, system, isChat) {
  const turns = path.filter((node) => node.text !== "");
  const isContinued = turns.at(-1)?.role === "assistant";
  if (!isChat) {
    let text = system ? `${system}\n` : "";
    turns.forEach((node, i) => {
      text += i > 0 && node.role === "user" && !text.endsWith("\n") ? `\n${node.text}` : node.text;
    });
    return { messages: [{ role: "user", content: text }] };
  }
  const messages = turns.map((node) => ({ role: node.role, content: node.text }));
  if (system) messages.unshift({ role: "system", content: system });
  return isContinued ? { messages, continue_final_message: true } : { messages };
}
