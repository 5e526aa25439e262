// Markdown of a model's text as trees [tag, attributes, ...children] of fixed tags. No DOM, and no raw HTML: markup in the text is text.
//
// Headings, lists, tables, code, quotes, rules, bold and italics, as chat models write them; a line's end stays one. Formulas are taken
// out first and put back last, so `_` and `*` in them are TeX. Links and pictures stay as they are written.

const ITEM = /^(\s*)([-*+•]|\d{1,3}[.)])(?:\s+(.*))?$/;
const FENCE = /^\s*(`{3,}|~{3,})\s*[\w+#.-]*\s*$/;
const HEADING = /^\s{0,3}(#{1,6})\s+(.*?)\s*#*\s*$/;
const RULE = /^\s*([-*_])(?:\s*\1){2,}\s*$/;
const UNDER_HEADER = /^\s*\|?\s*:?-+:?\s*(?:\|\s*:?-+:?\s*)*\|?\s*$/;
const QUOTE = /^\s{0,3}> ?/;
const INLINE = new RegExp([
  "(?<ticks>`+)(?<code>[^`]|[^`][^]{0,2000}?[^`])\\k<ticks>(?!`)",
  "\\\\(?<sign>[*_#$%&`|~])",
  "(?<![\\w)*])\\*\\*\\*(?=[^\\s*])(?<both>[^]{0,2000}?[^\\s*])\\*\\*\\*(?!\\*)",
  "(?<![\\w)*])\\*\\*(?=[^\\s*])(?<strong>[^]{0,2000}?\\S)\\*\\*(?!\\*)",
  "(?<![\\w)\\]*])\\*(?=[^\\s*])(?<em>[^*]{0,2000}?[^\\s*])\\*(?![\\w(*])",
  "(?<![\\w)\\]_])__(?=[^\\s_])(?<strong2>[^]{0,2000}?[^\\s_])__(?![\\w_])",
  "(?<![\\w)\\]_])_(?=[^\\s_])(?<em2>[^_]{0,2000}?[^\\s_])_(?![\\w_])",
  "\x7f(?<piece>\\d+)\x7f",
].join("|"), "g");
const DEEP = 6; // emphasis within emphasis, lists within lists

// The nodes of a text: strings, trees, and pieces as `segments` has them; and the fence of code that its end leaves open, "" for none.
//   open: the fence that the text before it left open.
function markdown(text, open = "") {
  const pieces = [];
  const placed = segments(text.replaceAll("\x7f", "\ufffd"))
    .map((piece) => (piece.text === undefined ? `\x7f${pieces.push(piece) - 1}\x7f` : piece.text)).join("");
  const lines = placed.split("\n");
  const state = { pieces, open };
  const nodes = blocks(lines, state, 0);
  return [nodes, state.open];
}

const restored = (text, pieces) => text.replace(/\x7f(\d+)\x7f/g, (_, number) => pieces[number].source);

function blocks(lines, state, depth) {
  const nodes = [];
  let at = 0;
  const code = (fence) => {
    const start = at;
    while (at < lines.length && !(FENCE.test(lines[at]) && lines[at].trim().startsWith(fence))) at++;
    state.open = at < lines.length ? "" : fence;
    nodes.push(["pre", {}, ["code", {}, restored(lines.slice(start, at++).join("\n"), state.pieces)]]);
  };
  if (state.open) code(state.open);
  while (at < lines.length) {
    const line = lines[at];
    const heading = HEADING.exec(line);
    if (!line.trim()) at++;
    else if (FENCE.test(line)) {
      at++;
      code(FENCE.exec(line)[1]);
    } else if (heading) {
      nodes.push(["h5", {}, ...inline(heading[2], state.pieces, 0)]);
      at++;
    } else if (RULE.test(line)) {
      nodes.push(["hr", {}]);
      at++;
    } else if (QUOTE.test(line) && depth < DEEP) {
      const start = at;
      while (at < lines.length && QUOTE.test(lines[at])) at++;
      nodes.push(["blockquote", {}, ...blocks(lines.slice(start, at).map((quoted) => quoted.replace(QUOTE, "")), state, depth + 1)]);
    } else if (tableBegins(lines, at)) {
      const start = at;
      for (at += 2; at < lines.length && lines[at].includes("|"); at++);
      nodes.push(tableOf([lines[start], ...lines.slice(start + 2, at)], state.pieces));
    } else if (ITEM.test(line) && depth < DEEP) {
      const start = at;
      at = listEnd(lines, at);
      nodes.push(listOf(lines.slice(start, at), state, depth));
    } else {
      const start = at++;
      while (at < lines.length && lines[at].trim() && ![FENCE, HEADING, RULE, QUOTE].some((other) => other.test(lines[at])) &&
        !(ITEM.test(lines[at]) && depth < DEEP) && !tableBegins(lines, at)) at++;
      nodes.push(["p", {}, ...inline(lines.slice(start, at).join("\n").trim(), state.pieces, 0)]);
    }
  }
  return nodes;
}

const tableBegins = (lines, at) => lines[at].includes("|") && /\|/.test(lines[at + 1]) && UNDER_HEADER.test(lines[at + 1]);

const indent = (line) => /^\s*/.exec(line)[0].length;

// Where a list ends: at a line after a blank one that neither continues an item nor begins one, or at one of another kind of block.
function listEnd(lines, at) {
  const margin = indent(lines[at]);
  for (at++; at < lines.length; at++) {
    if (!lines[at].trim()) {
      const next = lines.slice(at).find((line) => line.trim());
      if (next === undefined || (indent(next) <= margin && !ITEM.test(next))) break;
    } else if (indent(lines[at]) <= margin && (FENCE.test(lines[at]) || HEADING.test(lines[at]) || RULE.test(lines[at]))) break;
  }
  return at;
}

// A list of items at the first one's margin; what is further in belongs to the item above.
function listOf(lines, state, depth) {
  const [, margin, mark] = ITEM.exec(lines[0]);
  const ordered = /\d/.test(mark);
  const items = [];
  for (const line of lines) {
    const found = ITEM.exec(line);
    if (found && (found[1].length <= margin.length || !items.length)) items.push({ inside: found[1].length + found[2].length + 1, mark: found[2], lines: [found[3] ?? ""] });
    else items[items.length - 1].lines.push(line);
  }
  const made = items.map((item) => {
    const own = item.lines.map((line, i) => (i ? line.slice(Math.min(indent(line), item.inside)) : line));
    return ["li", ordered && /\d/.test(item.mark) ? { value: String(parseInt(item.mark, 10)) } : {}, ...unwrapped(blocks(own, state, depth + 1))];
  });
  return [ordered ? "ol" : "ul", {}, ...made];
}

// A paragraph that begins an item stands beside its mark.
const unwrapped = (nodes) => (nodes.length && nodes[0][0] === "p" ? [...nodes[0].slice(2), ...nodes.slice(1)] : nodes);

function tableOf(lines, pieces) {
  const cells = (line) => line.trim().replace(/^\||(?<!\\)\|$/g, "").split(/(?<!\\)\|/);
  const [header, ...body] = lines.map(cells);
  const row = (tag, own) => ["tr", {}, ...header.map((_, i) => [tag, {}, ...inline((own[i] ?? "").trim(), pieces, 0)])];
  return ["table", {}, ["thead", {}, row("th", header)], ["tbody", {}, ...body.map((own) => row("td", own))]];
}

function inline(text, pieces, depth) {
  if (depth > DEEP) return [restored(text, pieces)];
  const nodes = [];
  let end = 0;
  for (const match of text.matchAll(INLINE)) {
    if (match.index > end) nodes.push(text.slice(end, match.index));
    end = match.index + match[0].length;
    const { code, sign, both, strong, em, strong2, em2, piece } = match.groups;
    if (code !== undefined) nodes.push(["code", {}, restored(code, pieces).replace(/^ (.*) $/, "$1")]);
    else if (sign !== undefined) nodes.push(sign);
    else if (piece !== undefined) nodes.push(pieces[piece]);
    else if (both !== undefined) nodes.push(["strong", {}, ["em", {}, ...inline(both, pieces, depth + 1)]]);
    else if ((strong ?? strong2) !== undefined) nodes.push(["strong", {}, ...inline(strong ?? strong2, pieces, depth + 1)]);
    else nodes.push(["em", {}, ...inline(em ?? em2, pieces, depth + 1)]);
  }
  if (end < text.length) nodes.push(text.slice(end));
  return nodes;
}
