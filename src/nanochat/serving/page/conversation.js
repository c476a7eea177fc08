// A conversation is a tree: a question has its answers as children, an answer the questions that follow it. What is
// edited, asked again or continued from another token becomes one more child, so no version is lost; `chosen` says
// which one is on show. A node is {role, parts: [{type, text}], children, chosen}; an answer also has tokens, and, as
// far as it has come, finish, stats (lengths and speed), error, forgotten, note.

export const newConversation = (system) =>
  ({ id: Date.now().toString(36) + Math.random().toString(36).slice(2), system, updated: 0, children: [], chosen: 0 });
export const newQuestion = (text) => ({ role: "user", parts: [{ type: "text", text }], children: [], chosen: 0 });
export const newAnswer = () => ({ role: "assistant", parts: [], tokens: [], children: [], chosen: 0 });

/** Append `child` to the versions under `parent`, and show it. */
export function add(parent, child) {
  parent.chosen = parent.children.push(child) - 1;
  return child;
}

/** The nodes on show, question and answer in turn. */
export function visible(conversation) {
  const path = [];
  for (let node = conversation; (node = node.children[node.chosen]); ) path.push(node);
  return path;
}

/** What a node says, without the calculator's work. */
export const textOf = (node) => node.parts.map((part) => (part.type === "text" ? part.text : "")).join("");

export const titleOf = (conversation) => visible(conversation).slice(0, 1).map(textOf).join().slice(0, 80);

/** Parts with each call of the calculator and its result joined into one: "37*24 = 888". */
export function calls(parts) {
  const joined = [];
  for (const { type, text } of parts) {
    if (type === "python_output" && joined.at(-1)?.type === "python") joined.at(-1).text += ` = ${text}`;
    else joined.push({ type, text });
  }
  return joined;
}

/** What a node says, with the calculator's work as code. */
export const markdownOf = (node) =>
  calls(node.parts).map(({ type, text }) => (type === "text" ? text : `\`${text}\`\n\n`)).join("").trim();

/** A path as messages for the server, as a model is trained on: questions that got no answer are left out. */
export function messagesOf({ system }, path) {
  const saysNothing = (node) => node && !node.parts.some((part) => part.text);
  const said = path.filter((node, index) => !saysNothing(node) && !saysNothing(path[index + 1]));
  const messages = said.map((node) => {
    const parts = node.parts.filter((part) => part.text).map(({ type, text }) => ({ type, text }));
    return { role: node.role, content: parts.every((part) => part.type === "text") ? textOf(node) : parts };
  });
  return system.trim() ? [{ role: "system", content: system.trim() }, ...messages] : messages;
}

/**
 * Add a chunk of the stream to an answer. `known` has what is known already about the tokens that the answer was told
 * to begin with: the server doesn't say it again.
 */
export function receive(answer, chunk, known) {
  for (const { delta: { part }, finish_reason: finish, tokens = [] } of chunk.choices) {
    const last = answer.parts.at(-1);
    if (part && last && last.index === part.index && last.type === part.type) last.text += part.text;
    else if (part?.text) answer.parts.push(part);
    for (const token of tokens) {
      const before = known[answer.tokens.length];
      answer.tokens.push(before?.id === token.id ? { control: token.control, ...before } : token);
    }
    if (finish) answer.finish = finish;
  }
  if (chunk.usage) answer.stats = { completion_tokens: chunk.usage.completion_tokens, ...chunk.nanochat };
}

/** What is on show as Markdown. */
export function toMarkdown(conversation) {
  const name = (node) => (node.role === "user" ? "You" : "NanoChat");
  const said = visible(conversation).map((node) => `**${name(node)}**\n\n${markdownOf(node)}`);
  return [`# ${titleOf(conversation)}`, conversation.system, ...said].filter(Boolean).join("\n\n") + "\n";
}

/** What is on show as JSON: `messages` as `nanochat sft` takes them, and what is known about the answers. */
export function toJson(conversation, model) {
  const path = visible(conversation);
  const answers = path.filter((node) => node.tokens).map(({ finish, stats, tokens }) => ({ finish, stats, tokens }));
  const messages = messagesOf(conversation, path);
  return JSON.stringify({ title: titleOf(conversation), model, messages, answers }, null, 1) + "\n";
}
