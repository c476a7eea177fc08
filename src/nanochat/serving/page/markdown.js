// Markdown as elements. Text only ever becomes text nodes: no HTML string is made here, so none can be smuggled in. The
// expressions look a bounded way ahead, so that the work is linear in the text, whatever a model writes.

import { copy, h, iconButton } from "./dom.js";

const DEEPEST = 6; // lists in lists, emphasis in emphasis; below that text is shown as it is
const FENCE = /^ {0,3}(`{3,}|~{3,})[ \t]*([\w+#.-]*)/;
const HEADING = /^ {0,3}(#{1,6})[ \t]+(.*)$/;
const RULE = /^ {0,3}([-*_])([ \t]*\1){2,}[ \t]*$/;
const ITEM = /^( *)([-*+]|\d{1,9}[.)])[ \t]+(.*)$/;
const QUOTE = /^ {0,3}> ?/;
const COLUMNS = /^[ \t]*\|?[ \t]*:?-+:?[ \t]*(\|[ \t]*:?-+:?[ \t]*)*\|?[ \t]*$/;

const kindOf = (line, next = "") =>
  FENCE.test(line) ? "fence" : HEADING.test(line) ? "heading" : RULE.test(line) ? "rule" : ITEM.test(line) ? "list"
    : QUOTE.test(line) ? "quote" : next && line.includes("|") && COLUMNS.test(next) ? "table" : "paragraph";

// Whether line `at` belongs to the block that begins with line `start`.
const isInList = (line) => /^( {2}|\t)/.test(line) || ITEM.test(line);
const closes = (line, opening) => line.trim().startsWith(FENCE.exec(opening)[1]);
const BELONGS = {
  fence: (lines, at, start) => at === start + 1 || !closes(lines[at - 1], lines[start]),
  heading: () => false,
  rule: () => false,
  list: (lines, at) => isInList(lines[at].trim() ? lines[at] : lines[at + 1] ?? ""),
  quote: (lines, at) => QUOTE.test(lines[at]),
  table: (lines, at) => lines[at].includes("|"),
  paragraph: (lines, at) => lines[at].trim() && kindOf(lines[at], lines[at + 1]) === "paragraph",
};

/** Split Markdown into the sources of its blocks. */
export function blocks(text) {
  const lines = text.split("\n");
  const found = [];
  for (let at = 0; at < lines.length; ) {
    const start = at++;
    if (!lines[start].trim()) continue;
    const belongs = BELONGS[kindOf(lines[start], lines[at])];
    while (at < lines.length && belongs(lines, at, start)) at++;
    found.push(lines.slice(start, at).join("\n"));
  }
  return found;
}

const renderAll = (text, depth) => blocks(text).map((block) => renderBlock(block, depth));

const RENDER = {
  fence: codeBlock,
  heading,
  rule: () => h("hr"),
  list,
  quote: (lines, depth) =>
    h("blockquote", {}, renderAll(lines.map((line) => line.replace(QUOTE, "")).join("\n"), depth + 1)),
  table,
  paragraph: (lines) => h("p", {}, inline(lines.join("\n"))),
};

/** Return the element of one block. */
export function renderBlock(source, depth = 0) {
  const lines = source.split("\n");
  return RENDER[depth < DEEPEST ? kindOf(lines[0], lines[1]) : "paragraph"](lines, depth);
}

function heading([line]) {
  const [, marks, text] = HEADING.exec(line);
  return h(`h${Math.min(marks.length + 2, 6)}`, {}, inline(text)); // h1 is the page's, h2 the dialogs'
}

function codeBlock([opening, ...lines]) {
  if (lines.length && closes(lines.at(-1), opening)) lines.pop();
  const text = lines.join("\n");
  const button = iconButton("copy", "Copy code", () => copy(text, button));
  const bar = h("div", { class: "bar" }, FENCE.exec(opening)[2] || "text", button);
  return h("div", { class: "code" }, bar, h("pre", { tabindex: 0 }, h("code", {}, text)));
}

function list(lines, depth) {
  const [, indent, mark] = ITEM.exec(lines[0]);
  const margin = new RegExp(`^( {1,${indent.length + mark.length + 1}}|\\t)`);
  const items = [];
  for (const line of lines) {
    const [, deeper, , text] = ITEM.exec(line) ?? [];
    if (deeper?.length <= indent.length + 1) items.push([text]);
    else items.at(-1).push(line.replace(margin, ""));
  }
  const inside = (item) => renderAll(item.join("\n"), depth + 1)
    .flatMap((element, index) => (index === 0 && element.tagName === "P" ? [...element.childNodes] : element));
  const first = parseInt(mark);
  const attributes = first >= 0 && first !== 1 ? { start: first } : {};
  return h(first >= 0 ? "ol" : "ul", attributes, items.map((item) => h("li", {}, inside(item))));
}

function table([head, , ...lines]) {
  const cells = (line) => line.trim().replace(/^\||\|$/g, "").split("|");
  const row = (line, tag) => h("tr", {}, cells(line).map((cell) => h(tag, {}, inline(cell.trim()))));
  const rows = lines.map((line) => row(line, "td"));
  const whole = h("table", {}, h("thead", {}, row(head, "th")), h("tbody", {}, rows));
  return h("div", { class: "table", tabindex: 0 }, whole);
}

// Emphasis doesn't begin or end inside a word or at a blank: "2*3*4" and "snake_case_name" have none.
const INLINE = new RegExp([
  /\\(?<escaped>[!-/:-@[-`{-~])/,
  /(?<!`)(?<ticks>`{1,9})(?!`)(?<code>[^]{1,1000}?)(?<!`)\k<ticks>(?!`)/,
  /\[(?<label>[^[\]]{1,300})\]\((?<target>[^\s()]{1,1000}(?:\([^\s()]{0,300}\))?)(?: [^()\n]{0,200})?\)/,
  /(?<!\w)(?<address>https?:\/\/[^\s<>"`]{1,1000}(?<![.,;:!?)\]*_'~]))/,
  /(?<![\w*_~])(?<double>\*\*|__|~~)(?=\S)(?<strong>[^]{1,400}?)(?<=\S)\k<double>(?![\w*_~])/,
  /(?<![\w*_])(?<single>[*_])(?![\s*_])(?<em>[^]{1,400}?)(?<![\s*_])\k<single>(?![\w*_])/,
].map((expression) => expression.source).join("|"), "g");

/** Return the nodes of running text: code, emphasis, links, line breaks. */
function inline(text, depth = 0) {
  const nodes = [];
  const plain = (text) => text.split("\n").forEach((line, index) => nodes.push(...(index ? [h("br"), line] : [line])));
  let end = 0;
  for (const { 0: all, index, groups } of depth < DEEPEST ? text.matchAll(INLINE) : []) {
    const { escaped, code, label, target, address, double, strong, em } = groups;
    plain(text.slice(end, index));
    end = index + all.length;
    if (code) nodes.push(h("code", {}, code.replace(/^ ([^]*) $/, "$1")));
    else if (target) nodes.push(link(target, inline(label, depth + 1)) ?? all);
    else if (address) nodes.push(link(address, address) ?? all);
    else if (strong) nodes.push(h(double === "~~" ? "del" : "strong", {}, inline(strong, depth + 1)));
    else if (em) nodes.push(h("em", {}, inline(em, depth + 1)));
    else plain(escaped);
  }
  plain(text.slice(end));
  return nodes;
}

/** Return a link that opens in a tab of its own, or null unless the address is a whole http or https one. */
function link(address, content) {
  if (!/^https?:\/\//i.test(address) || !URL.canParse(address)) return null;
  return h("a", { href: address, title: address, target: "_blank", rel: "noopener noreferrer nofollow" }, content);
}
