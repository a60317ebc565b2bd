// Markdown to elements. Text becomes text nodes only, so that nothing that a model writes is markup.
// What it knows: headings, paragraphs, lists, quotes, tables, rules, fenced code; in a line: code,
// bold, italic, struck out, links to http and https.

const FENCE = /^ {0,3}(`{3,}|~{3,})\s*([^\s`]*)/;
const ITEM = /^(\s*)([-*+]|\d{1,9}[.)])\s+(.*)$/;
const RULE = /^ {0,3}([-*_])(\s*\1){2,}\s*$/;
const TABLE_RULE = /^\s*\|?\s*:?-+:?\s*(\|\s*:?-+:?\s*)*\|?\s*$/;

// The most quotes and lists inside each other. A line of a thousand ">" must not end the stack.
const DEEPEST = 12;

export function element(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

/** A fragment of elements for the text, which may be cut off anywhere: answers grow. */
export function markdown(text) {
  const fragment = document.createDocumentFragment();
  fragment.append(...blocks(text.split("\n"), 0));
  return fragment;
}

function blocks(lines, depth) {
  const made = [];
  let at = 0;
  while (at < lines.length) {
    const [block, next] = oneBlock(lines, at, depth);
    if (block) made.push(block);
    at = next;
  }
  return made;
}

function oneBlock(lines, at, depth) {
  const line = lines[at];
  if (!line.trim()) return [null, at + 1];
  const fence = FENCE.exec(line);
  if (fence) return fenced(lines, at, fence);
  const heading = /^ {0,3}(#{1,6})\s+(.*?)\s*#*\s*$/.exec(line);
  if (heading) {
    // The page has an h1 and h2 of its own.
    const level = Math.min(heading[1].length + 2, 6);
    return [element(`h${level}`, {}, ...inline(heading[2])), at + 1];
  }
  if (RULE.test(line)) return [element("hr"), at + 1];
  if (depth < DEEPEST && /^ {0,3}>/.test(line)) return quote(lines, at, depth);
  if (depth < DEEPEST && ITEM.test(line)) return list(lines, at, depth);
  if (line.includes("|") && TABLE_RULE.test(lines[at + 1] ?? "")) return table(lines, at);
  return paragraph(lines, at, depth);
}

function fenced(lines, at, [, mark, language]) {
  const closing = new RegExp(`^ {0,3}${mark[0]}{${mark.length},}\\s*$`);
  let end = at + 1;
  while (end < lines.length && !closing.test(lines[end])) end++;
  const code = lines.slice(at + 1, end).join("\n");
  const copy = element("button", { type: "button", className: "copy", textContent: "Copy" });
  copy.dataset.code = code;
  const head = element("figcaption", {}, language, copy);
  const body = element("pre", { tabIndex: 0 }, element("code", {}, code));
  return [element("figure", { className: "code" }, head, body), end + 1];
}

function quote(lines, at, depth) {
  let end = at;
  while (end < lines.length && /^ {0,3}>/.test(lines[end])) end++;
  const inside = lines.slice(at, end).map((line) => line.replace(/^ {0,3}> ?/, ""));
  return [element("blockquote", {}, ...blocks(inside, depth + 1)), end];
}

function list(lines, at, depth) {
  const [, indent, mark] = ITEM.exec(lines[at]);
  const ordered = /\d/.test(mark);
  const made = element(ordered ? "ol" : "ul");
  if (ordered) made.start = Number.parseInt(mark, 10);
  const isItem = (line) => {
    const item = ITEM.exec(line);
    return item && item[1].length <= indent.length + 1 && /\d/.test(item[2]) === ordered && item;
  };
  while (at < lines.length) {
    const item = isItem(lines[at]);
    if (!item) break;
    const width = item[0].length - item[3].length;
    const inside = [item[3]];
    for (at++; at < lines.length && belongs(lines, at, indent.length); at++) {
      inside.push(lines[at].slice(Math.min(width, lines[at].search(/\S|$/))));
    }
    const content = blocks(inside, depth + 1);
    // An item of one paragraph has no space around it.
    const plain = content[0]?.tagName === "P" ? [...content[0].childNodes, ...content.slice(1)] : content;
    made.append(element("li", {}, ...plain));
    while (at < lines.length && !lines[at].trim() && isItem(lines[at + 1] ?? "")) at++;
  }
  return [made, at];
}

/** Whether a line is inside a list item whose mark is indented by `indent`. */
function belongs(lines, at, indent) {
  const line = lines[at];
  if (!line.trim()) return /^\s{2,}\S/.test(lines[at + 1] ?? "") && lines[at + 1].search(/\S/) > indent + 1;
  return line.search(/\S/) > indent + 1;
}

function cells(line) {
  return line.trim().replace(/^\||(?<!\\)\|$/g, "").split(/(?<!\\)\|/).map((cell) => cell.trim().replaceAll("\\|", "|"));
}

function table(lines, at) {
  const sides = cells(lines[at + 1]).map((cell) => (/^:-+:$/.test(cell) ? "center" : /-:$/.test(cell) ? "right" : ""));
  const row = (line, name) =>
    element("tr", {}, ...cells(line).map((cell, i) => element(name, { className: sides[i] ?? "" }, ...inline(cell))));
  const head = element("thead", {}, row(lines[at], "th"));
  const body = element("tbody");
  for (at += 2; at < lines.length && lines[at].includes("|"); at++) body.append(row(lines[at], "td"));
  return [element("div", { className: "table" }, element("table", {}, head, body)), at];
}

function paragraph(lines, at, depth) {
  const first = at;
  const begins = (line) =>
    !line.trim() || FENCE.test(line) || /^ {0,3}#{1,6}\s/.test(line) || RULE.test(line) ||
    (depth < DEEPEST && (/^ {0,3}>/.test(line) || ITEM.test(line)));
  for (at++; at < lines.length && !begins(lines[at]); at++);
  return [element("p", {}, ...inline(lines.slice(first, at).join("\n").trim())), at];
}

// Each with the groups of its own: code, bold, italic, struck out, a link, an address.
const INLINE = new RegExp(
  [
    "(?<ticks>`+)(?<code>[^`][^]*?)\\k<ticks>(?!`)",
    "\\*\\*(?<bold>[^*\\s](?:[^]{0,2000}?[^*\\s])?)\\*\\*",
    "(?<![*\\w])[*_](?<italic>[^*_\\s](?:[^*_]{0,2000}?[^*_\\s])?)[*_](?![*\\w])",
    "~~(?<struck>[^~]{1,2000})~~",
    "\\[(?<label>[^\\[\\]]{1,500})\\]\\((?<target>https?:[^\\s()]{1,2000})\\)",
    "(?<address>https?://[^\\s<>()\"'`]{1,2000}[^\\s<>()\"'`.,;:!?])",
    "\\\\(?<escaped>[\\\\`*_{}\\[\\]()#+.!~|-])",
  ].join("|"),
  "g",
);

function inline(text, depth = 0) {
  if (depth > 4) return [text];
  const made = [];
  let last = 0;
  for (const match of text.matchAll(INLINE)) {
    made.push(...broken(text.slice(last, match.index)));
    last = match.index + match[0].length;
    const { code, bold, italic, struck, label, target, address, escaped } = match.groups;
    if (code !== undefined) made.push(element("code", {}, code.trim()));
    else if (bold) made.push(element("strong", {}, ...inline(bold, depth + 1)));
    else if (italic) made.push(element("em", {}, ...inline(italic, depth + 1)));
    else if (struck) made.push(element("s", {}, ...inline(struck, depth + 1)));
    else if (escaped) made.push(escaped);
    else {
      const href = target ?? address;
      const shown = label ? inline(label, depth + 1) : [href];
      made.push(element("a", { href, target: "_blank", rel: "noopener noreferrer nofollow" }, ...shown));
    }
  }
  made.push(...broken(text.slice(last)));
  return made;
}

/** Two spaces at a line's end break it. */
function broken(text) {
  return text.split(/ {2,}\n/).flatMap((part, i) => (i ? [element("br"), part] : [part])).filter((part) => part !== "");
}
