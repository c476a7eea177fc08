// The server's API: OpenAI's, with what NanoChat adds to it. Aborting by a `signal` raises a `ServerError` too.

import { session } from "./store.js";

/** What went wrong, in words for a person. `status` is HTTP's, or 0 where there was no response. */
export class ServerError extends Error {
  constructor(message, status = 0, code = null) {
    super(message);
    Object.assign(this, { status, code });
  }
}

async function request(path, body, signal) {
  const key = session["nanochat.key"];
  const type = body && { "Content-Type": "application/json" };
  const headers = { ...type, ...(key && { Authorization: `Bearer ${key}` }) };
  const options = { method: body ? "POST" : "GET", headers, body: JSON.stringify(body), signal };
  const response = await fetch(path, options).catch(() => {
    throw new ServerError("The server can’t be reached. Is nanochat serve still running?");
  });
  if (response.ok) return response;
  const { error } = await response.json().catch(() => ({}));
  throw new ServerError(explain(response, error?.message ?? "it did not say why"), response.status, error?.code);
}

function explain({ status, headers }, message) {
  const wait = headers.get("Retry-After");
  if (status === 401) return "The server wants an API key.";
  if (status === 413) return `That is too long for the server: ${message}`;
  if (status === 429) return `The server is busy. Please try again ${wait ? `in ${wait} s` : "in a moment"}.`;
  return status >= 500 ? `The server can’t answer now: ${message}` : message;
}

/** GET, or POST where there is a body, and return the JSON of the answer. Raises `ServerError`. */
export const getJson = async (path, body, signal) => (await request(path, body, signal)).json();

/** Ask for a streamed completion and yield its chunks. Raises `ServerError`, also where the stream breaks off. */
export async function* streamChat(body, signal) {
  const response = await request("/v1/chat/completions", { ...body, stream: true }, signal);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  for (let waiting = ""; ; ) {
    const { value, done } = await reader.read().catch(() => ({ done: true }));
    if (done) throw new ServerError("The connection broke off before the answer was complete.");
    const lines = (waiting + value).split("\n");
    waiting = lines.pop();
    for (const line of lines.filter((line) => line.startsWith("data: "))) {
      if (line.trim() === "data: [DONE]") return;
      const chunk = JSON.parse(line.slice(6));
      if (chunk.error) throw new ServerError(`The answer broke off: ${chunk.error.message}`, 500, chunk.error.code);
      yield chunk;
    }
  }
}
