// The server as the page sees it: its models, its figures, and an answer that streams.

const KEY = "airllm.key";

/** An answer that could not be given; `status` is HTTP's, 0 if the server was not reached. */
export class ServerError extends Error {
  constructor(message, status = 0) {
    super(message);
    this.status = status;
  }
}

export function setKey(key) {
  sessionStorage.setItem(KEY, key);
}

function headers() {
  const key = sessionStorage.getItem(KEY);
  return { "Content-Type": "application/json", ...(key && { Authorization: `Bearer ${key}` }) };
}

async function asked(path, options = {}) {
  let response;
  try {
    response = await fetch(path, { ...options, headers: headers(), credentials: "omit" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServerError("The server does not answer. Is it running?");
  }
  if (response.ok) return response;
  let message = `${response.status} ${response.statusText}`;
  try {
    message = (await response.json()).error.message ?? message;
  } catch {
    // The body was not the server's JSON: the status says what there is to say.
  }
  const again = response.headers.get("Retry-After");
  if (response.status === 429 && again) message += ` Try again in ${again} s.`;
  throw new ServerError(message, response.status);
}

/** A list of {id, state}; state is "loaded", "loading", "unloaded" or "unloading". */
export async function models() {
  const { data } = await (await asked("v1/models")).json();
  return data.map(({ id, status }) => ({ id, state: status.value }));
}

/** Resolves when the model is loaded. */
export async function load(model) {
  await asked("models/load", { method: "POST", body: JSON.stringify({ model }) });
}

export async function properties(model) {
  return (await asked(`props?model=${encodeURIComponent(model)}`)).json();
}

/**
 * Streams an answer. `on` has the functions content(text), thinking(text), progress(done, total).
 * Returns {finish, usage}. Aborting `signal` ends it with an AbortError; the server then cancels.
 */
export async function answer(request, signal, on) {
  const body = JSON.stringify({
    ...request,
    stream: true,
    stream_options: { include_usage: true },
    return_progress: true,
  });
  const response = await asked("v1/chat/completions", { method: "POST", body, signal });
  let finish = null;
  let usage = null;
  for await (const data of events(response.body)) {
    if (data === "[DONE]") return { finish, usage };
    const chunk = JSON.parse(data);
    if (chunk.error) throw new ServerError(chunk.error.message);
    if (chunk.usage) usage = chunk.usage;
    const progress = chunk.prompt_progress;
    if (progress) on.progress(progress.processed, progress.total);
    for (const choice of chunk.choices ?? []) {
      if (choice.delta?.reasoning_content) on.thinking(choice.delta.reasoning_content);
      if (choice.delta?.content) on.content(choice.delta.content);
      finish = choice.finish_reason ?? finish;
    }
  }
  throw new ServerError("The connection ended before the answer did.");
}

/** The data of server-sent events. */
async function* events(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      rest += value;
      const parts = rest.split("\n\n");
      rest = parts.pop();
      for (const part of parts) {
        const data = part.split("\n").filter((line) => line.startsWith("data:"));
        if (data.length) yield data.map((line) => line.slice(5).trimStart()).join("\n");
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}
