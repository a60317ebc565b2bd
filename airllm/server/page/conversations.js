// The conversations, kept in this browser and nowhere else.
//
// {id, title, model, options, system, thinking, messages: [{role, content, files, reasoning, figures}]}

const KEY = "airllm.conversations";

export class Conversations {
  constructor(storage = localStorage) {
    this.storage = storage;
    this.all = [];
    try {
      const read = JSON.parse(storage.getItem(KEY) ?? "[]");
      this.all = read.filter((one) => typeof one?.id === "string" && Array.isArray(one.messages));
    } catch {
      // What another program left under this name is not a conversation.
    }
  }

  fresh() {
    const made = { id: crypto.randomUUID(), title: "", model: "", options: {}, system: "", thinking: true, messages: [] };
    this.all.unshift(made);
    return made;
  }

  find(id) {
    return this.all.find((one) => one.id === id);
  }

  remove(id) {
    this.all = this.all.filter((one) => one.id !== id);
    this.save();
  }

  /** Returns whether there was room. Conversations without a message are not kept. */
  save() {
    const kept = this.all.filter((one) => one.messages.length);
    try {
      this.storage.setItem(KEY, JSON.stringify(kept));
      return true;
    } catch {
      return false;
    }
  }
}

/** The first words of a conversation. */
export function titleOf(conversation) {
  const first = conversation.messages.find((message) => message.role === "user");
  const words = (first?.content ?? "").trim().split(/\s+/).join(" ");
  return words.length > 48 ? `${words.slice(0, 47)}…` : words || first?.files?.[0]?.name || "New conversation";
}

/** A conversation as the messages of OpenAI's protocol. */
export function asRequest(conversation) {
  const system = conversation.system.trim();
  return [
    ...(system ? [{ role: "system", content: system }] : []),
    ...conversation.messages.map(({ role, content, files }) => ({ role, content: withFiles(content, files) })),
  ];
}

function withFiles(content, files = []) {
  const attached = files.map(({ name, text }) => {
    // Longer than any run of backticks inside.
    const runs = (text.match(/`+/g) ?? []).map((run) => run.length);
    const fence = "`".repeat(Math.max(3, ...runs.map((n) => n + 1)));
    return `${name}\n${fence}\n${text}\n${fence}`;
  });
  return [...attached, content].filter(Boolean).join("\n\n");
}

const MOST_BYTES = 1 << 20;

/** Reads a file that a person attached. Throws an Error that says why it cannot be one. */
export async function attachment(file) {
  if (file.size > MOST_BYTES) throw new Error(`${file.name} is larger than 1 MiB.`);
  const bytes = await file.arrayBuffer();
  try {
    const text = new TextDecoder("utf-8", { fatal: true }).decode(bytes);
    if (text.includes("\0")) throw new TypeError();
    return { name: file.name, text };
  } catch {
    throw new Error(`${file.name} is not a text file in UTF-8.`);
  }
}
