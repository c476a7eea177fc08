// What the browser keeps: each conversation under a key of its own, and the settings.

const PREFIX = "nanochat.conversation.";
const SETTINGS = "nanochat.settings";
const MOST_CHARACTERS = 2_500_000; // half of what browsers give an address; its other pages live from the rest
export const DEFAULTS =
  { system: "", temperature: 0, top_p: 1, top_k: null, max_tokens: 256, seed: null, theme: "auto", tokenView: false };

const opened = (name) => {
  try {
    return window[name];
  } catch {
    return {}; // switched off: what would be kept lives as long as the page
  }
};
const storage = opened("localStorage");
export const session = opened("sessionStorage");

/** The settings; a value that is missing or of the wrong kind is the default. */
export function loadSettings() {
  const saved = read(SETTINGS) ?? {};
  const fits = (name) => typeof saved[name] === (DEFAULTS[name] === null ? "number" : typeof DEFAULTS[name]);
  return Object.fromEntries(Object.keys(DEFAULTS).map((name) => [name, fits(name) ? saved[name] : DEFAULTS[name]]));
}

export const saveSettings = (settings) => write(SETTINGS, JSON.stringify(settings));

const keys = () => Object.keys(storage).filter((key) => key.startsWith(PREFIX));

/** All conversations, the latest first. What is none (a damaged entry) is removed. */
export function loadConversations() {
  const isConversation = (key, one) => isNode(one) && PREFIX + one.id === key && typeof one.system === "string";
  for (const key of keys()) if (!isConversation(key, read(key))) delete storage[key];
  return keys().map(read).sort((a, b) => b.updated - a.updated);
}

/**
 * Keep a conversation and move it to the front of `all`. To make room the oldest lose what is known about their tokens
 * first, then go altogether. Returns whether it could be kept.
 */
export function saveConversation(all, conversation) {
  conversation.updated = Date.now();
  all.splice(0, all.length, conversation, ...all.filter((one) => one !== conversation));
  while (!write(PREFIX + conversation.id, pack(conversation))) {
    const talkative = all.findLast(forgetTokens);
    if (talkative) write(PREFIX + talkative.id, pack(talkative));
    else if (all.length > 1) removeConversation(all, all.at(-1));
    else return false;
  }
  return true;
}

export function removeConversation(all, conversation) {
  all.splice(all.indexOf(conversation), 1);
  delete storage[PREFIX + conversation.id];
}

function read(key) {
  try {
    return JSON.parse(storage[key]);
  } catch {
    return null; // not there, or damaged
  }
}

function write(key, text) {
  const others = keys().filter((other) => other !== key);
  if (others.reduce((sum, other) => sum + storage[other].length, text.length) > MOST_CHARACTERS) return false;
  try {
    storage[key] = text;
    return true;
  } catch {
    return false; // other pages of this address have taken the room
  }
}

// Three decimals of a log-probability are enough to look at; a flag that is missing is false.
const pack = (conversation) => JSON.stringify(conversation, (name, value) =>
  name === "logprob" && value !== null ? Math.round(value * 1000) / 1000 : value === false ? undefined : value);

/** Forget the tokens of all answers under `node`; return whether there were any. */
function forgetTokens(node) {
  const had = node.tokens?.length > 0;
  if (had) node.tokens = [];
  return node.children.map(forgetTokens).some(Boolean) || had;
}

const isPart = (part) => typeof part?.type === "string" && typeof part.text === "string";
const isToken = (token) =>
  Number.isInteger(token?.id) && typeof token.text === "string" && (token.top ?? []).every?.(isToken);
const isMessage = (node) => node?.parts?.every?.(isPart) && isNode(node)
  && (node.role === "user" || (node.role === "assistant" && node.tokens?.every?.(isToken)));
const isNode = (node) => node?.children?.every?.(isMessage) && (node.chosen in node.children || !node.children.length);
