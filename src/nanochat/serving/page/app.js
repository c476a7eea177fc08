// The page: which conversation is open, what is asked of the server, what the buttons and keys do.

import { ServerError, getJson, streamChat } from "./api.js";
import * as tree from "./conversation.js";
import { announce, grow, h, iconButton, isTouch } from "./dom.js";
import * as store from "./store.js";
import { messageView, trouble, updateMessage, welcome } from "./view.js";

const $ = (id) => document.getElementById(id);
const settings = store.loadSettings();
const conversations = store.loadConversations();
const running = new Map(); // conversation -> {answer, controller}: what the server is writing now
let conversation; // the one on show
let model; // what the server calls it
let isFollowing = true; // the end of the conversation stays in view
let afterKey = () => {}; // what to do again once there is an API key

// ---- Asking ----

async function connect() {
  model = (await getJson("/v1/models")).data[0].id;
  $("model").textContent = model;
  $("notice").hidden = true;
}

/** Have `answer`, which is on show, written, beginning with the tokens `known`. Until the first it stays as it was. */
async function write(answer, known = []) {
  const owner = conversation;
  const path = tree.visible(owner);
  const asked = path.slice(0, path.indexOf(answer));
  const controller = new AbortController();
  running.get(owner)?.controller.abort();
  running.set(owner, { answer, controller });
  Object.assign(answer, { error: undefined, forgotten: undefined });
  isFollowing = true;
  keep(owner);
  render();
  announce("The answer is coming.");
  try {
    if (!model) await connect();
    const body = requestBody(tree.messagesOf(owner, asked), known, asked.at(-1).chosen);
    answer.forgotten = await forgetOldest(body, controller.signal);
    let hasBegun = false;
    for await (const chunk of streamChat(body, controller.signal)) {
      if (!hasBegun) Object.assign(answer, { parts: [], tokens: [], finish: undefined, stats: undefined });
      hasBegun = true;
      tree.receive(answer, chunk, known);
      refresh(answer);
    }
  } catch (error) {
    if (controller.signal.aborted) answer.finish = "stopped";
    else fail(answer, error);
  }
  if (running.get(owner)?.answer === answer) running.delete(owner);
  if (conversations.includes(owner)) keep(owner); // it may have been deleted meanwhile
  redraw(answer);
  announce(answer.error ?? tree.textOf(answer));
}

function requestBody(messages, known, version) {
  const { temperature, top_p, top_k, max_tokens, seed } = settings;
  return {
    model, messages, temperature, max_tokens,
    ...(top_p < 1 && { top_p }), ...(top_k && { top_k }),
    ...(seed !== null && { seed: seed + version }), // as /retry in the terminal: another version, the next seed
    ...(known.length && { prefix_token_ids: known.map((token) => token.id) }),
    stream_options: { include_usage: true }, logprobs: true, top_logprobs: 5, return_tokens: true,
  };
}

/** Leave out the oldest questions and answers until a new answer has room, as the terminal chat does; return if so. */
async function forgetOldest({ messages, max_tokens }, signal) {
  const first = messages[0].role === "system" ? 1 : 0;
  const length = messages.length;
  const hasRoom = async () => {
    const { count, max_model_len: context } = await getJson("/tokenize", { messages }, signal).catch((error) => {
      if (error.code !== "context_length_exceeded") throw error;
      return { count: 1, max_model_len: 0 };
    });
    return count <= context - Math.min(max_tokens, Math.floor(context / 4));
  };
  while (messages.length > first + 1 && !(await hasRoom())) messages.splice(first, 2);
  return messages.length < length;
}

function fail(answer, error) {
  if (!(error instanceof ServerError)) console.error(error);
  answer.error = error instanceof ServerError ? error.message : "The server’s answer can’t be understood.";
  model = undefined; // the server may come back as another
  if (error.status === 401) askForKey(() => tree.visible(conversation).includes(answer) && write(answer));
}

function ask(text) {
  if (running.has(conversation)) return;
  const question = tree.add(tree.visible(conversation).at(-1) ?? conversation, tree.newQuestion(text));
  history.replaceState(null, "", `#${conversation.id}`);
  write(tree.add(question, tree.newAnswer()));
}

/** What can be done with the message `node` under `parent`. */
const actions = (node, parent) => ({
  show: (step) => {
    parent.chosen = Math.max(0, Math.min(parent.chosen + step, parent.children.length - 1));
    if (step) keep(conversation);
    render();
  },
  edit: (text) => write(tree.add(tree.add(parent, tree.newQuestion(text)), tree.newAnswer())),
  again: () => {
    const note = "At temperature 0 the answer is always the same; the settings have livelier ones.";
    write(Object.assign(tree.add(parent, tree.newAnswer()), settings.temperature === 0 && { note }));
  },
  goOn: () => write(node, node.tokens),
  retry: () => write(node),
  pick: (index, token) => {
    const picked = { ...token, top: node.tokens[index].top, picked: true };
    write(tree.add(parent, tree.newAnswer()), [...node.tokens.slice(0, index), picked]);
  },
});

// ---- Showing ----

const articles = new WeakMap(); // node -> its element
const waiting = new Set(); // answers that are brought up to date at the next frame

/** What view.js wants to know about a node on show. */
function situation(node) {
  const path = tree.visible(conversation);
  const depth = path.indexOf(node);
  const parent = path[depth - 1] ?? conversation;
  const isRunning = running.get(conversation)?.answer === node;
  const [version, versions] = [parent.chosen + 1, parent.children.length];
  return [node, actions(node, parent), { isRunning, tokenView: settings.tokenView, depth, version, versions }];
}

function draw(node) {
  articles.set(node, messageView(...situation(node)));
  return articles.get(node);
}

/** Show everything anew. */
function render() {
  const path = tree.visible(conversation);
  const focus = document.activeElement.dataset.focus;
  $("messages").replaceChildren(...(path.length ? path.map(draw) : [welcome(ask)]));
  if (focus) $("messages").querySelector(`[data-focus="${focus}"]`)?.focus();
  document.title = path.length ? `${tree.titleOf(conversation)} · NanoChat` : "NanoChat";
  $("export").disabled = !path.length;
  $("conversations").replaceChildren(...conversations.map((one) => h("li", {},
    h("a", { href: `#${one.id}`, "aria-current": one === conversation && "page" }, tree.titleOf(one)),
    iconButton("close", `Delete “${tree.titleOf(one)}”`, () => forget(one)))));
  renderBars();
}

/** Show one answer as it is now and leave the rest, where a message may be being edited. */
function redraw(answer) {
  if (articles.get(answer)?.isConnected) updateMessage(articles.get(answer), ...situation(answer));
  renderBars();
}

/** Show what has come of an answer, once a frame. */
function refresh(answer) {
  if (!waiting.size) requestAnimationFrame(() => {
    waiting.forEach(redraw);
    waiting.clear();
  });
  waiting.add(answer);
}

function renderBars() {
  const canStop = running.has(conversation);
  $("send").ariaLabel = canStop ? "Stop" : "Send";
  $("send").dataset.icon = canStop ? "stop" : "send";
  $("legend").hidden = !settings.tokenView;
  $("token-view").ariaPressed = settings.tokenView;
  follow();
}

function follow() {
  if (isFollowing) $("messages").scrollTop = $("messages").scrollHeight;
}

function notify(text, retry) {
  $("notice").replaceChildren(...trouble(text, retry).children);
  $("notice").hidden = false;
}

// ---- Conversations and settings ----

function keep(one) {
  if (!store.saveConversation(conversations, one)) notify("This browser has no room left to keep the conversation.");
}

function forget(one) {
  if (!confirm(`Delete “${tree.titleOf(one)}”?`)) return;
  running.get(one)?.controller.abort();
  store.removeConversation(conversations, one);
  if (one === conversation) location.hash = "";
  else render();
}

function open() {
  const known = conversations.find((one) => `#${one.id}` === location.hash);
  conversation = known ?? tree.newConversation(settings.system);
  isFollowing = true;
  render();
  if (!isTouch()) $("text").focus();
}

const start = () => connect().catch((error) => {
  notify(error.message, start);
  if (error.status === 401) askForKey(start);
});

function askForKey(next) {
  afterKey = next;
  $("key").showModal();
}

function useKey({ target: form }) {
  store.session["nanochat.key"] = form.elements.key.value.trim();
  form.reset();
  afterKey();
}

function setTheme(theme) {
  settings.theme = document.documentElement.dataset.theme = $("theme").dataset.icon = theme;
  $("theme").title = $("theme").ariaLabel = `Theme: ${theme === "auto" ? "as the system" : theme}`;
  store.saveSettings(settings);
}

function toggleTokens() {
  settings.tokenView = !settings.tokenView;
  store.saveSettings(settings);
  renderBars();
  tree.visible(conversation).filter((node) => node.role === "assistant").forEach(redraw);
}

function showValue(field) {
  if (field.type === "range") field.previousElementSibling.textContent = field.value;
}

function showSettings() {
  for (const field of $("settings").querySelectorAll("[name]")) {
    field.value = (field.name === "system" ? conversation.system : settings[field.name]) ?? "";
    showValue(field);
  }
  $("settings").showModal();
}

function changeSetting({ target: field }) {
  if (!field.checkValidity()) return;
  if (field.name === "system") settings.system = conversation.system = field.value;
  else settings[field.name] = field.value === "" ? store.DEFAULTS[field.name] : Number(field.value);
  showValue(field);
  store.saveSettings(settings);
}

// ---- Buttons and keys ----

function send() {
  const text = $("text").value.trim();
  if (running.has(conversation)) return running.get(conversation).controller.abort();
  if (!text) return;
  $("text").value = "";
  grow($("text"));
  ask(text);
}

function showMenu(isOpen) {
  document.body.classList.toggle("menu-open", isOpen);
  $("menu").ariaExpanded = isOpen;
}

function download(extension, type, text) {
  $("export-menu").hidePopover();
  const name = tree.titleOf(conversation).replace(/[^\p{L}\p{N}]+/gu, "-").slice(0, 40);
  const url = URL.createObjectURL(new Blob([text], { type }));
  h("a", { href: url, download: `${name}.${extension}` }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}

function onKey(event) {
  const isCovered = document.querySelector("dialog[open], :popover-open");
  if (event.key === "Escape" && !isCovered) running.get(conversation)?.controller.abort();
  else if (event.altKey && event.code === "KeyT") toggleTokens();
  else if (event.altKey && event.code === "KeyN") location.hash = "";
  else if (event.key === "/" && !isCovered && !event.target.matches("input, textarea")) $("text").focus();
  else return;
  event.preventDefault();
}

function onTextKey(event) {
  const isSending = event.key === "Enter" && !event.shiftKey && !event.isComposing && !isTouch();
  if (isSending) event.preventDefault();
  if (isSending && !running.has(conversation)) send();
  if (event.key === "ArrowUp" && !$("text").value) [...document.querySelectorAll("[data-icon=edit]")].at(-1)?.click();
}

const listen = (id, type, listener) => $(id).addEventListener(type, listener);
listen("composer", "submit", (event) => (event.preventDefault(), send()));
listen("text", "input", () => grow($("text")));
listen("text", "keydown", onTextKey);
listen("messages", "scroll", ({ target: { scrollHeight, scrollTop, clientHeight } }) => {
  isFollowing = scrollHeight - scrollTop - clientHeight < 40;
});
listen("menu", "click", () => showMenu(true));
listen("close-menu", "click", () => showMenu(false));
listen("backdrop", "click", () => showMenu(false));
listen("sidebar", "click", ({ target }) => target.closest("a") && showMenu(false));
listen("token-view", "click", toggleTokens);
listen("theme", "click", () => setTheme({ auto: "light", light: "dark", dark: "auto" }[settings.theme]));
listen("settings-button", "click", showSettings);
listen("settings", "input", changeSetting);
listen("settings", "close", () => conversations.includes(conversation) && keep(conversation));
listen("key", "submit", useKey);
listen("export-markdown", "click", () => download("md", "text/markdown", tree.toMarkdown(conversation)));
listen("export-json", "click", () => download("json", "application/json", tree.toJson(conversation, model)));
addEventListener("keydown", onKey);
addEventListener("hashchange", open);
addEventListener("pagehide", () => running.forEach(({ controller }, one) => (controller.abort(), keep(one))));

setTheme(["light", "dark"].includes(settings.theme) ? settings.theme : "auto");
open();
start();
getJson("/health").then(({ insight }) => {
  const url = insight && new URL(insight, location.href);
  if (url && /^https?:$/.test(url.protocol)) Object.assign($("insight"), { href: url.href, hidden: false });
}).catch(() => {}); // no link then
