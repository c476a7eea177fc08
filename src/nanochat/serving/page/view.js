// One message as an element: what was said, what can be done with it, how fast it came.

import { calls, markdownOf, textOf } from "./conversation.js";
import { copy, grow, h, iconButton, isTouch, sync } from "./dom.js";
import { blocks, renderBlock } from "./markdown.js";
import { showTokens } from "./tokens.js";

const STARTERS =
  ["What is the capital of France?", "What is 37 times 24?", "Who are you?", "What is the opposite of hot?"];
const CUT_OFF = "Cut off: the answer reached its limit of tokens, or the end of the model’s context.";
const ENDS = { stop: "", stopped: "Stopped.", length: CUT_OFF };
const FORGOTTEN = "The context is full: the model has forgotten the oldest part of this conversation.";

/** What an empty conversation shows. */
export const welcome = (ask) => h("div", { class: "welcome" }, h("h2", {}, "Ask me something."),
  h("p", {}, "Switch on ", h("b", {}, "Tokens"), " to see how sure the model is of every piece it says,",
    " and to try what it might have said instead."),
  h("div", {}, STARTERS.map((text) => h("button", { type: "button", onclick: () => ask(text) }, text))));

/**
 * The element of a question or an answer. `on` has what can be done: show(step), edit(text), again(), goOn(), retry(),
 * pick(index, token). `state`: isRunning, tokenView, depth in the conversation, version (from 1) of versions.
 */
export function messageView(node, on, state) {
  const label = node.role === "assistant" ? "Answer" : "You";
  const article = h("article", { class: node.role, "aria-label": label }, h("div", { class: "body" }));
  updateMessage(article, node, on, state);
  return article;
}

/** Bring the element of a message up to date. What it says stays in place as far as it is the same. */
export function updateMessage(article, node, on, state) {
  const body = article.firstChild;
  article.ariaBusy = state.isRunning;
  if (node.role === "user") body.replaceChildren(textOf(node));
  else if (state.tokenView && node.tokens.length) asTokens(body, node.tokens, on.pick);
  else asProse(body, node.parts, state.isRunning);
  while (body.nextSibling) body.nextSibling.remove();
  if (!state.isRunning) article.append(...notes(node, on), footer(article, node, on, state));
}

function asTokens(body, tokens, onPick) {
  if (!body.classList.contains("tokens")) body.replaceChildren();
  body.className = "body tokens";
  showTokens(body, tokens, onPick);
}

function asProse(body, parts, isRunning) {
  const call = (text) => h("p", { class: "call", "data-icon": "calculator" }, h("code", {}, text));
  const items = calls(parts).flatMap(({ type, text }) => type === "text"
    ? blocks(text).map((source) => ({ key: source, build: () => renderBlock(source) }))
    : [{ key: `call ${text}`, build: () => call(text) }]);
  if (isRunning && !items.length) items.push({ key: "…", build: () => h("span", { class: "thinking" }) });
  body.className = "body prose";
  sync(body, items);
}

function notes(node, { retry }) {
  if (node.role === "user") return [];
  const end = node.error ? "" : ENDS[node.finish] ?? "This answer was interrupted.";
  const texts = [node.forgotten && FORGOTTEN, node.note, end].filter(Boolean);
  return [...texts.map((text) => h("p", { class: "note" }, text)), ...(node.error ? [trouble(node.error, retry)] : [])];
}

/** What went wrong, with a button to try again. */
export const trouble = (text, retry) => h("div", { class: "error", role: "alert" }, h("p", {}, text),
  retry && h("button", { type: "button", onclick: retry, "data-focus": "retry" }, "Try again"));

function footer(article, node, on, { depth, version, versions }) {
  const isAnswer = node.role === "assistant";
  const button = (icon, label, action) =>
    iconButton(icon, label, (event) => action(event.currentTarget), { "data-focus": `${depth} ${label}` });
  const choice = [button("back", "Earlier version", () => on.show(-1)), `${version} / ${versions}`,
    button("next", "Later version", () => on.show(1))];
  return h("footer", {},
    versions > 1 && h("span", { role: "group", "aria-label": "Versions" }, choice),
    node.parts.length > 0 && button("copy", "Copy", (element) => copy(markdownOf(node), element)),
    !isAnswer && button("edit", "Edit", () => edit(article, node, on, `${depth} Edit`)),
    isAnswer && !node.error && button("again", "Answer again", on.again),
    isAnswer && node.finish !== "stop" && node.tokens.length > 0 && button("on", "Continue", on.goOn),
    isAnswer && node.stats && speed(node.stats));
}

function speed({ completion_tokens: count, prompt_tokens: prompt, cached_tokens: cached, ...timing }) {
  const { time_to_first_token: first, tokens_per_second: rate } = timing;
  const spared = "Tokens before the answer that need not be computed again";
  const figure = (value, label, meaning) => h("span", { title: meaning }, h("b", {}, value), ` ${label}`);
  const wait = first < 1 ? `${Math.round(first * 1000)} ms` : `${first?.toFixed(1)} s`;
  return h("span", { class: "speed" },
    figure(count, "tokens", "Length of the answer"),
    first && figure(wait, "to the first", "Time to the first token"),
    rate && figure(Math.round(rate).toLocaleString("en"), "tokens/s", "Speed after the first token"),
    cached > 0 && figure(`${cached} of ${prompt}`, "from cache", spared));
}

function edit(article, node, on, focus) {
  const send = () => area.value.trim() && on.edit(area.value.trim());
  const onkeydown = (event) => {
    if (event.key === "Escape") event.stopPropagation(), on.show(0);
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing && !isTouch()) event.preventDefault(), send();
  };
  const label = { "aria-label": "Edit the message", "data-focus": focus };
  const area = h("textarea", { rows: 1, ...label, oninput: () => grow(area), onkeydown }, textOf(node));
  article.classList.add("editing");
  article.firstChild.replaceChildren(area);
  article.lastChild.replaceChildren(h("button", { type: "button", onclick: () => on.show(0) }, "Cancel"),
    h("button", { type: "button", class: "primary", onclick: send }, "Send"));
  grow(area);
  area.focus();
}
