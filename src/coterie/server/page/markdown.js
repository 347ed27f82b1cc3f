// Markdown to DOM nodes, by text nodes alone. HTML in it is text, images are never fetched, links are http(s) or mailto.
//
// Every character keeps its place in the source, so that what is shown can be split where the model's tokens begin
// (`place`), and every block knows its piece of the source, so that a growing answer redraws only its last block.

import { copy, el, icon } from "./dom.js";
import { renderInline } from "./inline.js";

const FENCE = /^ {0,3}(`{3,}|~{3,})[ \t]*([^`]*)$/;
const HEADING = /^ {0,3}(#{1,6})(?:[ \t]+|$)/;
const RULE = /^ {0,3}(?:\*[ \t]*){3,}$|^ {0,3}(?:-[ \t]*){3,}$|^ {0,3}(?:_[ \t]*){3,}$/;
const QUOTE = /^ {0,3}> ?/;
const ITEM = /^( {0,3})([-*+]|\d{1,9}[.)])(?: +|$)/;
const DIVIDER = /^ *\|?(?: *:?-+:? *\|)+(?: *:?-+:? *)?$/;
const MOST_DEPTH = 8;

/** Blocks of lines {text, at}: {kind, lines, ...}. `at` is where a line begins in the source. */
export function parseBlocks(source) {
  let at = 0;
  const lines = source.split("\n").map((text) => {
    const line = { text: text.replace(/\r$/, ""), at };
    at += text.length + 1;
    return line;
  });
  return blocksOf(lines, 0);
}

/** Redraws `parent` for this source; blocks that are as they were stay. `place` makes text nodes of pieces. */
export function renderMarkdown(parent, source, place) {
  const blocks = parseBlocks(source);
  const kept = parent.blockKeys ?? [];
  const keys = blocks.map((block) => `${place.nBefore(block.end)}:${block.start}:${source.slice(block.start, block.end)}`);
  blocks.forEach((block, i) => {
    if (kept[i] === keys[i] && parent.children[i]) return;
    const node = blockNode(block, place);
    if (parent.children[i]) parent.children[i].replaceWith(node);
    else parent.append(node);
  });
  while (parent.children.length > blocks.length) parent.lastElementChild.remove();
  parent.blockKeys = keys;
}

function blocksOf(lines, depth) {
  const blocks = [];
  let i = 0;
  while (i < lines.length) {
    if (!lines[i].text.trim()) {
      i += 1;
      continue;
    }
    const [block, next] = readBlock(lines, i, depth);
    const last = lines[next - 1];
    blocks.push({ ...block, start: lines[i].at, end: last.at + last.text.length });
    i = next;
  }
  return blocks;
}

function readBlock(lines, i, depth) {
  const { text } = lines[i];
  const fence = FENCE.exec(text);
  if (fence) return readFence(lines, i, fence);
  const heading = HEADING.exec(text);
  if (heading) return [{ kind: "heading", level: heading[1].length, lines: [cut(lines[i], heading[0].length)] }, i + 1];
  if (RULE.test(text)) return [{ kind: "rule" }, i + 1];
  if (depth < MOST_DEPTH) {
    if (QUOTE.test(text)) return readQuote(lines, i, depth);
    if (ITEM.test(text)) return readList(lines, i, depth);
  }
  if (text.includes("|") && DIVIDER.test(lines[i + 1]?.text ?? "")) return readTable(lines, i);
  let end = i + 1;
  while (end < lines.length && lines[end].text.trim() && !interrupts(lines[end].text, depth)) end += 1;
  return [{ kind: "paragraph", lines: lines.slice(i, end) }, end];
}

function interrupts(text, depth) {
  return FENCE.test(text) || HEADING.test(text) || RULE.test(text) || (depth < MOST_DEPTH && (QUOTE.test(text) || ITEM.test(text)));
}

function cut(line, n) {
  return { text: line.text.slice(n), at: line.at + n };
}

function readFence(lines, i, [, mark, info]) {
  let end = i + 1;
  const isEnd = (text) => {
    const run = text.trim();
    return run.length >= mark.length && [...run].every((c) => c === mark[0]);
  };
  while (end < lines.length && !isEnd(lines[end].text)) end += 1;
  const block = { kind: "code", language: info.trim().split(/\s/)[0].slice(0, 30), lines: lines.slice(i + 1, end) };
  return [block, Math.min(end + 1, lines.length)];
}

function readQuote(lines, i, depth) {
  const inner = [];
  while (i < lines.length && lines[i].text.trim() && (QUOTE.test(lines[i].text) || !interrupts(lines[i].text, depth))) {
    inner.push(cut(lines[i], QUOTE.exec(lines[i].text)?.[0].length ?? 0));
    i += 1;
  }
  return [{ kind: "quote", blocks: blocksOf(inner, depth + 1) }, i];
}

function readList(lines, i, depth) {
  const first = ITEM.exec(lines[i].text);
  const isOrdered = /\d/.test(first[2]);
  const items = [];
  while (i < lines.length) {
    const mark = ITEM.exec(lines[i].text);
    if (!mark || /\d/.test(mark[2]) !== isOrdered || RULE.test(lines[i].text)) break;
    const width = mark[0].length;
    const inner = [cut(lines[i], width)];
    i += 1;
    while (i < lines.length) {
      const { text } = lines[i];
      const indent = text.length - text.trimStart().length;
      const isBlank = !text.trim();
      const goesOn = indent >= Math.min(width, 2) && (indent >= width || !ITEM.test(text));
      const isLazy = inner.at(-1).text.trim() && !interrupts(text, depth);
      if (isBlank ? !continuesAfterBlank(lines, i, width) : !goesOn && !isLazy) break;
      inner.push(cut(lines[i], Math.min(indent, width)));
      i += 1;
    }
    items.push(blocksOf(inner, depth + 1));
    while (i < lines.length && !lines[i].text.trim() && ITEM.test(lines[i + 1]?.text ?? "")) i += 1;
  }
  return [{ kind: "list", isOrdered, from: Number.parseInt(first[2], 10) || 1, items }, i];
}

function continuesAfterBlank(lines, i, width) {
  const next = lines.slice(i, i + 4).find((line) => line.text.trim());
  return next !== undefined && next.text.length - next.text.trimStart().length >= width;
}

function readTable(lines, i) {
  const sides = cells(lines[i + 1]).map(({ text }) => {
    const side = text.trim();
    return side.endsWith(":") ? (side.startsWith(":") ? "center" : "end") : "start";
  });
  const rows = [cells(lines[i])];
  let end = i + 2;
  while (end < lines.length && lines[end].text.includes("|")) {
    rows.push(cells(lines[end]).slice(0, sides.length));
    end += 1;
  }
  return [{ kind: "table", sides, rows }, end];
}

/** A row's cells, without the outer bars. `\|` is no border. */
function cells(line) {
  const found = [];
  let start = line.text.length - line.text.trimStart().length;
  if (line.text[start] === "|") start += 1;
  for (let i = start; i <= line.text.length; i += 1) {
    const isBorder = line.text[i] === "|" && line.text[i - 1] !== "\\";
    if (!isBorder && i < line.text.length) continue;
    if (i === line.text.length && !line.text.slice(start).trim()) break;
    const text = line.text.slice(start, i);
    found.push({ text: text.trim(), at: line.at + start + text.length - text.trimStart().length });
    start = i + 1;
  }
  return found;
}

function blockNode(block, place) {
  switch (block.kind) {
    case "heading": return el(`h${Math.min(block.level + 2, 6)}`, {}, ...renderInline(block.lines, place));
    case "rule": return el("hr");
    case "code": return codeNode(block, place);
    case "quote": return el("blockquote", {}, ...block.blocks.map((inner) => blockNode(inner, place)));
    case "list": return listNode(block, place);
    case "table": return tableNode(block, place);
    default: return el("p", {}, ...renderInline(block.lines, place));
  }
}

function codeNode({ language, lines }, place) {
  const code = el("code");
  lines.forEach((line, i) => {
    code.append(...place.pieces(line.text, line.at));
    if (i + 1 < lines.length) code.append("\n");
  });
  const text = lines.map((line) => line.text).join("\n");
  const done = el("span", { class: "copy-word" }, "Copy");
  const onClick = async () => {
    done.textContent = (await copy(text)) ? "Copied" : "Select and copy";
    setTimeout(() => { done.textContent = "Copy"; }, 1500);
  };
  const bar = el("div", { class: "code-bar" }, el("span", {}, language || "text"),
    el("button", { type: "button", class: "quiet", "aria-label": "Copy code", on: { click: onClick } }, icon("copy"), done));
  return el("div", { class: "code" }, bar, el("pre", { tabindex: "0", "aria-label": `Code, ${language || "text"}` }, code));
}

function listNode({ isOrdered, from, items }, place) {
  const list = el(isOrdered ? "ol" : "ul", { start: isOrdered && from !== 1 ? String(from) : null });
  for (const blocks of items) {
    const isTight = blocks[0]?.kind === "paragraph";
    const parts = blocks.map((b, i) => (i === 0 && isTight ? el("span", {}, ...renderInline(b.lines, place)) : blockNode(b, place)));
    list.append(el("li", {}, ...parts));
  }
  return list;
}

function tableNode({ sides, rows }, place) {
  const row = (cellsOf, tag) => el("tr", {}, ...cellsOf.map((cell, i) =>
    el(tag, { class: `to-${sides[i] ?? "start"}` }, ...renderInline([cell], place))));
  const [head, ...rest] = rows;
  const table = el("table", {}, el("thead", {}, row(head, "th")), el("tbody", {}, ...rest.map((r) => row(r, "td"))));
  return el("div", { class: "scroll", tabindex: "0", role: "group", "aria-label": "Table" }, table);
}
