// The page: what the buttons do, and which elements show what.

import { answer, properties, ServerError, setKey } from "./api.js";
import { asRequest, attachment, Conversations, titleOf } from "./conversations.js";
import { element, markdown } from "./markdown.js";
import { machineRows } from "./machine.js";
import { ModelMenu } from "./models.js";

const $ = (id) => document.getElementById(id);
const kept = new Conversations();
let current = kept.all[0] ?? kept.fresh();
let files = []; // attached to the message that is being written
let running = null; // {abort, conversation} while an answer comes
const menu = new ModelMenu($("model"), (text) => {
  if (!running) $("state").textContent = text;
});

// ---- showing ----------------------------------------------------------------------------------

function notice(text) {
  $("notice").textContent = text;
  $("notice").hidden = !text;
}

function showSide() {
  const rows = kept.all.filter((one) => one.messages.length || one === current);
  $("conversations").replaceChildren(
    ...rows.map((one) => {
      const open = element("button", { type: "button", textContent: titleOf(one) });
      open.onclick = () => choose(one);
      if (one === current) open.setAttribute("aria-current", "true");
      const remove = element("button", { type: "button", className: "icon", textContent: "×", title: "Delete" });
      remove.setAttribute("aria-label", `Delete “${titleOf(one)}”`);
      remove.onclick = () => forget(one);
      return element("li", {}, open, remove);
    }),
  );
  $("title").textContent = titleOf(current);
}

function showMessages() {
  $("messages").replaceChildren(...current.messages.map((message, at) => messageElement(message, at)));
  if (!current.messages.length) $("messages").append(element("p", { className: "hint" }, "Ask something."));
  $("messages").scrollTop = $("messages").scrollHeight;
}

function messageElement(message, at) {
  const body = element("div", { className: "body" });
  const made = element("article", { className: message.role }, body);
  made.setAttribute("aria-label", message.role === "user" ? "You" : "Answer");
  if (message.role === "user") {
    for (const { name } of message.files ?? []) body.append(element("p", { className: "file" }, name));
    body.append(element("p", { className: "plain" }, message.content));
    made.append(tools(["Edit", () => edit(made, at)], copying(message.content)));
  } else {
    fill(body, message);
    const last = at === current.messages.length - 1;
    made.append(
      tools(copying(message.content), ...(last ? [["Regenerate", regenerate]] : [])),
      element("p", { className: "figures" }, message.figures ?? ""),
    );
  }
  return made;
}

function fill(body, message, growing = false) {
  const parts = [];
  if (message.reasoning) {
    const thoughts = element("details", {}, element("summary", {}, "Thoughts"), markdown(message.reasoning));
    thoughts.open = body.querySelector("details")?.open ?? (growing && !message.content);
    parts.push(thoughts);
  }
  parts.push(markdown(message.content));
  body.replaceChildren(...parts);
}

function tools(...buttons) {
  const made = element("div", { className: "tools" });
  for (const [name, action] of buttons) {
    const button = element("button", { type: "button", textContent: name });
    button.onclick = action;
    made.append(button);
  }
  return made;
}

const copying = (text) => ["Copy", () => navigator.clipboard?.writeText(text)];

function showFiles() {
  $("attached").replaceChildren(
    ...files.map((file) => {
      const remove = element("button", { type: "button", className: "icon", textContent: "×" });
      remove.setAttribute("aria-label", `Do not attach ${file.name}`);
      remove.onclick = () => {
        files = files.filter((other) => other !== file);
        showFiles();
      };
      return element("li", {}, file.name, remove);
    }),
  );
}

function showSettings() {
  $("system").value = current.system;
  $("thinking").checked = current.thinking;
  for (const field of document.querySelectorAll("[data-option]")) {
    field.value = current.options[field.dataset.option] ?? "";
  }
}

function showBusy() {
  $("stop").hidden = !running;
  $("send").hidden = Boolean(running);
  if (!running) $("state").textContent = "";
}

function show() {
  showSide();
  showMessages();
  showSettings();
  showBusy();
  menu.show(current.model);
}

// ---- conversations ----------------------------------------------------------------------------

function save() {
  if (!kept.save()) notice("The browser has no room for more conversations. Delete some to keep this one.");
}

function choose(conversation) {
  stop();
  current = conversation;
  openSide(false);
  notice("");
  show();
  $("text").focus();
}

function forget(conversation) {
  if (running?.conversation === conversation) stop();
  kept.remove(conversation.id);
  if (conversation === current) current = kept.all[0] ?? kept.fresh();
  show();
}

function begin() {
  choose(kept.all.find((one) => !one.messages.length) ?? kept.fresh());
}

// ---- answers ----------------------------------------------------------------------------------

function send(content, attached, at = current.messages.length) {
  current.messages.splice(at, Infinity, { role: "user", content, ...(attached.length && { files: attached }) });
  return run();
}

function regenerate() {
  if (running) return;
  current.messages.pop();
  run();
}

function stop() {
  running?.abort.abort();
}

async function run() {
  const conversation = current;
  const mine = { abort: new AbortController(), conversation };
  running = mine;
  notice("");
  conversation.model = menu.chosen;
  const request = {
    model: menu.chosen,
    messages: asRequest(conversation),
    ...conversation.options,
    ...(conversation.thinking ? {} : { chat_template_kwargs: { enable_thinking: false } }),
  };
  const message = { role: "assistant", content: "", reasoning: "" };
  conversation.messages.push(message);
  save();
  show();
  const growing = growingMessage(message);
  const began = performance.now();
  let first = null;
  const grow = (part) => (text) => {
    first ??= performance.now();
    message[part] += text;
    $("state").textContent = part === "reasoning" ? "Thinking" : "Answering";
    growing.draw();
  };
  const said = {
    content: grow("content"),
    thinking: grow("reasoning"),
    progress: (done, total) => {
      if (first === null) $("state").textContent = `Reading the prompt: ${done} of ${total} tokens`;
    },
  };
  $("state").textContent = menu.waiting();
  try {
    const { finish, usage } = await answer(request, mine.abort.signal, said);
    message.figures = figures(finish, usage, began, first, performance.now());
  } catch (error) {
    if (error.name === "AbortError") message.figures = "stopped";
    else await failed(error);
  }
  if (!message.content && !message.reasoning) conversation.messages.splice(conversation.messages.indexOf(message), 1);
  if (running === mine) running = null;
  save();
  if (conversation === current) show();
  else showBusy();
  if (menu.areSeveral) connect();
}

async function failed(error) {
  if (error.status === 401) await askKey();
  else notice(error instanceof ServerError ? error.message : `The page failed: ${error.message}`);
}

/** Draws a message at most once a frame, and follows its end unless the reader has scrolled up. */
function growingMessage(message) {
  const body = $("messages").lastElementChild.querySelector(".body");
  let waits = false;
  const draw = () => {
    waits = false;
    if (!body.isConnected) return;
    const list = $("messages");
    const follows = list.scrollHeight - list.scrollTop - list.clientHeight < 60;
    fill(body, message, true);
    if (follows) list.scrollTop = list.scrollHeight;
  };
  return {
    draw: () => {
      if (!waits) requestAnimationFrame(draw);
      waits = true;
    },
  };
}

const REASONS = { length: "cut off at the most tokens", content_filter: "filtered" };

function figures(finish, usage, began, first, ended) {
  const parts = [];
  if (usage) {
    const n = usage.completion_tokens;
    const seconds = (ended - first) / 1000;
    parts.push(`${n} tokens`);
    if (first !== null && n > 1 && seconds > 0) parts.push(`${((n - 1) / seconds).toFixed(1)} tokens/s`);
    if (first !== null) parts.push(`first after ${((first - began) / 1000).toFixed(2)} s`);
    const reused = usage.prompt_tokens_details?.cached_tokens ?? 0;
    parts.push(`prompt of ${usage.prompt_tokens} tokens, ${reused} of them reused`);
  }
  if (REASONS[finish]) parts.push(REASONS[finish]);
  return parts.join(" · ");
}

function edit(article, at) {
  if (running) return;
  const message = current.messages[at];
  const field = element("textarea", { value: message.content, rows: Math.min(message.content.split("\n").length + 1, 12) });
  field.setAttribute("aria-label", "Edit the message");
  const done = () => send(field.value.trim(), message.files ?? [], at);
  field.onkeydown = (event) => {
    if (event.key === "Escape") showMessages();
    if (sends(event)) {
      event.preventDefault();
      done();
    }
    event.stopPropagation();
  };
  article.replaceChildren(field, tools(["Send", done], ["Cancel", showMessages]));
  field.focus();
}

// ---- the server -------------------------------------------------------------------------------

function askKey() {
  const dialog = $("key-dialog");
  if (dialog.open) return Promise.resolve();
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.onclose = () => {
      if ($("key").value) setKey($("key").value);
      $("key").value = "";
      connect();
      resolve();
    };
  });
}

async function connect() {
  try {
    await menu.refresh(current.model);
    document.title = menu.areSeveral ? "airllm" : `${menu.chosen} · airllm`;
  } catch (error) {
    await failed(error);
  }
}

/** A choice holds for this conversation, and begins the load. */
$("model").onchange = async () => {
  current.model = menu.chosen;
  save();
  notice("");
  try {
    await menu.load();
    await menu.refresh(current.model);
  } catch (error) {
    await failed(error);
  }
};

let refreshing = 0;

async function showMachine() {
  clearTimeout(refreshing);
  if ($("machine").hidden) return;
  try {
    const rows = machineRows(await properties(menu.chosen));
    $("figures").replaceChildren(...rows.flatMap(([name, value]) => [element("dt", {}, name), element("dd", {}, value)]));
  } catch (error) {
    $("figures").replaceChildren(element("dd", {}, error.message));
  }
  refreshing = setTimeout(showMachine, 2000);
}

// ---- buttons and keys -------------------------------------------------------------------------

/** Enter sends, but not while an input method composes a character. */
function sends(event) {
  return event.key === "Enter" && !event.shiftKey && !event.isComposing;
}

function resize() {
  const text = $("text");
  text.rows = Math.min(Math.max(text.value.split("\n").length, 1), 10);
}

$("composer").onsubmit = (event) => {
  event.preventDefault();
  const content = $("text").value.trim();
  if (running || !(content || files.length)) return;
  $("text").value = "";
  resize();
  const attached = files;
  files = [];
  showFiles();
  send(content, attached);
};
$("text").oninput = resize;
$("text").onkeydown = (event) => {
  if (sends(event)) {
    event.preventDefault();
    $("composer").requestSubmit();
  } else if (event.key === "ArrowUp" && !$("text").value && !running) {
    const last = current.messages.findLastIndex((message) => message.role === "user");
    if (last >= 0) edit($("messages").children[last], last);
    event.preventDefault();
  }
};
$("files").onchange = async () => {
  for (const file of $("files").files) {
    try {
      files.push(await attachment(file));
    } catch (error) {
      notice(error.message);
    }
  }
  $("files").value = "";
  showFiles();
};
$("stop").onclick = stop;
$("new").onclick = begin;
function openSide(open) {
  document.body.classList.toggle("side-open", open);
  $("menu").setAttribute("aria-expanded", String(open));
}
$("menu").onclick = (event) => {
  openSide(!document.body.classList.contains("side-open"));
  event.stopPropagation();
};
document.querySelector("main").onclick = () => openSide(false);
document.onkeydown = (event) => {
  if (event.key === "Escape") stop();
  if (event.altKey && event.key.toLowerCase() === "n") begin();
};
$("messages").onclick = async ({ target }) => {
  if (!target.matches?.("button.copy")) return;
  await navigator.clipboard?.writeText(target.dataset.code);
  target.textContent = "Copied";
};

for (const name of ["settings", "machine"]) {
  $(`open-${name}`).onclick = () => {
    for (const other of ["settings", "machine"]) {
      $(other).hidden = other !== name || !$(other).hidden;
      $(`open-${other}`).setAttribute("aria-expanded", String(!$(other).hidden));
    }
    openSide(false);
    showMachine();
  };
}
$("settings").onchange = ({ target }) => {
  current.system = $("system").value;
  current.thinking = $("thinking").checked;
  const name = target.dataset.option;
  if (name && target.value === "") delete current.options[name];
  else if (name && target.reportValidity()) current.options[name] = Number(target.value);
  save();
};

const THEMES = ["light dark", "light", "dark"];
function setTheme(theme) {
  document.querySelector("meta[name=color-scheme]").content = theme;
  document.documentElement.style.colorScheme = theme;
  localStorage.setItem("airllm.theme", theme);
  $("theme").textContent = { light: "Light", dark: "Dark" }[theme] ?? "As the system";
}
$("theme").onclick = () => {
  const now = document.querySelector("meta[name=color-scheme]").content;
  setTheme(THEMES[(THEMES.indexOf(now) + 1) % THEMES.length]);
};
setTheme(THEMES.find((theme) => theme === localStorage.getItem("airllm.theme")) ?? THEMES[0]);

show();
connect();
