// From TeX to presentation MathML, as trees [tag, attributes, ...children], and from those to elements.
//
// What a model writes is read leniently where a reader sees what is meant ("50%", x_1_2), and refused where not: an unknown command, or
// a brace or \left too many or too few. Then the page shows the source. Nothing is defined, linked or loaded, so no formula can do more
// than be shown. Attributes come from here alone, never from the formula; its characters end up in text nodes.

const DEEPEST = 40; // groups within groups
const LONGEST = 4000; // characters of a formula
const TOKENS = /\\(?:[a-zA-Z]+|[^])|\d+(?:\.\d+)*|\.\d+|\s+|[^]/gu;
const SWITCHES = { bf: "bold", rm: "roman", it: "italic", sf: "sans", tt: "mono", cal: "script", mit: "italic", bfseries: "bold", rmfamily: "roman", frak: "fraktur" };
const FONTS = { mathbf: "bold", bold: "bold", boldsymbol: "bold", bm: "bold", pmb: "bold", mathrm: "roman", mathup: "roman", mathnormal: "", mathit: "italic", mathsf: "sans", mathtt: "mono",
  mathcal: "script", mathscr: "script", mathfrak: "fraktur", mathbb: "double", Bbb: "double" };
const TEXTS = new Set("text mbox textrm textnormal textbf textit textsf texttt textup textsc emph hbox textmd fbox".split(" "));
const NOTHING = new Set(("displaylimits nolimits nonumber notag hfill allowbreak nobreak relax null strut mathstrut Large large LARGE huge Huge small normalsize tiny " +
  "footnotesize scriptsize boldmath break newline centering noindent protect ensuremath limits bigskip medskip smallskip").split(" "));
const SIZES = { big: 1.2, bigl: 1.2, bigr: 1.2, bigm: 1.2, Big: 1.8, Bigl: 1.8, Bigr: 1.8, Bigm: 1.8, bigg: 2.4, biggl: 2.4, biggr: 2.4, biggm: 2.4,
  Bigg: 3, Biggl: 3, Biggr: 3, Biggm: 3 };
// Where Unicode has the letters of an alphabet: its A and its a; the exceptions are older characters.
const ALPHABETS = { bold: [0x1d400, 0x1d41a], double: [0x1d538, 0x1d552], script: [0x1d49c, 0x1d4b6], fraktur: [0x1d504, 0x1d51e] };
const OLDER = { double: "CℂHℍNℕPℙQℚRℝZℤ", script: "BℬEℰFℱHℋIℐLℒMℳRℛeℯgℊoℴ", fraktur: "CℭHℌIℑRℜZℨ" };

const operator = (sign, attributes = {}) => ["mo", attributes, sign];
const space = (em) => ["mspace", { width: `${Math.round(em * 1000) / 1000}em` }];
const rowOf = (nodes) => (nodes.length === 1 ? nodes[0] : ["mrow", {}, ...nodes]);
const isOperator = (node) => node[0] === "mo";
const closes = (node) => isOperator(node) && (/^[)\]}!⟩⌋⌉′%]$/.test(node[2]) || node[1].form === "postfix");

// The tree of a formula: a <math> element.
function formulaTree(tex, display) {
  if (tex.length > LONGEST) throw new Error("it is too long");
  const reader = new TexReader(tex);
  const nodes = reader.table({ aligned: true, bare: true }, () => reader.next === undefined);
  return ["math", display ? { display: "block" } : {}, ...nodes];
}

class TexReader {
  constructor(tex) {
    this.tokens = tex.match(TOKENS) ?? [];
    this.at = 0;
    this.depth = 0;
    this.font = "";
  }

  get next() { return this.tokens[this.at]; }

  skipSpace() {
    while (this.next !== undefined && /^\s/.test(this.next)) this.at++;
  }

  take(wanted) {
    this.skipSpace();
    if (this.next === undefined || (wanted && this.next !== wanted)) throw new Error(`${wanted ?? "more"} is missing`);
    return this.tokens[this.at++];
  }

  within(read) {
    if (++this.depth > DEEPEST) throw new Error("it is nested too deeply");
    const { font } = this;
    const found = read();
    this.font = font;
    this.depth--;
    return found;
  }

  // Everything up to where `ends` is true, as a list of nodes.
  list(ends) {
    const nodes = [];
    for (this.skipSpace(); !ends(); this.skipSpace()) {
      const token = this.next;
      if (token === undefined) throw new Error("it ends too early");
      if (["\\over", "\\atop", "\\choose"].includes(token)) {
        this.at++;
        const below = this.within(() => this.list(ends));
        const fraction = ["mfrac", token === "\\over" ? {} : { linethickness: "0" }, rowOf(nodes), rowOf(below)];
        return token === "\\choose" ? [operator("("), fraction, operator(")")] : [fraction];
      }
      if (/^\\(display|text|script|scriptscript)style$/.test(token)) {
        this.at++;
        const rest = this.within(() => this.list(ends));
        return [...nodes, ["mstyle", { displaystyle: String(token === "\\displaystyle") }, ...rest]];
      }
      nodes.push(...this.atom(nodes));
    }
    return nodes;
  }

  group() {
    return this.within(() => {
      this.take("{");
      const nodes = this.list(() => this.next === "}");
      this.at++;
      return nodes.length === 1 && isOperator(nodes[0]) ? ["mo", { ...nodes[0][1], lspace: "0", rspace: "0" }, nodes[0][2]] : rowOf(nodes);
    });
  }

  // The argument of a command: a group, or one token; of a number its first digit.
  argument() {
    this.skipSpace();
    if (this.next === "{") return this.group();
    this.firstDigit();
    return this.within(() => rowOf(this.base([])));
  }

  firstDigit() {
    if (/^\d./.test(this.next)) this.tokens.splice(this.at, 1, this.next[0], ...this.next.slice(1).match(TOKENS));
  }

  // [ … ] as its tokens, where there is one.
  optional() {
    const start = this.at;
    this.skipSpace();
    const end = this.next === "[" ? this.tokens.indexOf("]", this.at) : -1;
    if (end < 0) {
      this.at = start;
      return null;
    }
    const inside = this.tokens.slice(this.at + 1, end);
    this.at = end + 1;
    return inside;
  }

  // The source of { … }.
  source() {
    this.take("{");
    const start = this.at;
    for (let depth = 1; depth; this.at++) {
      if (this.next === undefined) throw new Error("} is missing");
      depth += (this.next === "{") - (this.next === "}");
    }
    return this.tokens.slice(start, this.at - 1).join("");
  }

  // A reader of a part of the formula, and what it reads.
  inside(tex) {
    const reader = new TexReader(tex);
    if ((reader.depth = this.depth + 1) > DEEPEST) throw new Error("it is nested too deeply");
    return Object.assign(reader, { font: this.font });
  }

  inner(tex) {
    const reader = this.inside(tex);
    return reader.list(() => reader.next === undefined);
  }

  // What stands on a line, with what hangs on it.
  atom(before) {
    const nodes = /^[_^']$/.test(this.next) ? [["mrow", {}]] : this.base(before);
    if (!nodes.length) return nodes;
    let [base, below, above, primes] = [nodes.pop(), null, null, ""];
    let limits = base.limits;
    const hang = () => {
      const over = primes && above ? ["mrow", {}, operator(primes), above] : primes ? operator(primes) : above;
      const [two, low, high] = limits ? ["munderover", "munder", "mover"] : ["msubsup", "msub", "msup"];
      if (below && over) base = [two, {}, base, below, over];
      else if (below || over) base = [below ? low : high, {}, base, below ?? over];
      [below, above, primes] = [null, null, ""];
    };
    for (this.skipSpace(); this.next !== undefined; this.skipSpace()) {
      const token = this.next;
      if (token === "'" || token === "\\prime") primes += "′";
      else if (token === "_" || token === "^") {
        this.at++;
        if (token === "_" ? below : above) hang(); // twice, which TeX refuses: the second hangs on what stands there
        const hung = this.argument();
        if (token === "_") below = hung;
        else if (isOperator(hung) && /^′+$/.test(hung[2])) primes += hung[2];
        else above = hung;
        continue;
      } else if (token === "\\limits" || token === "\\nolimits") {
        limits = token === "\\limits";
        if (isOperator(base)) base[1].movablelimits = "false";
      } else break;
      this.at++;
    }
    const spaced = base.spaced;
    hang();
    nodes.push(base);
    if (spaced) { // a function: a thin space to its argument, and to a factor before it
      if (before.length && !isOperator(before[before.length - 1]) && before[before.length - 1][0] !== "mspace") nodes.unshift(space(1 / 6));
      if (this.next !== undefined && (/^[\w{|.]|^\\[|{]/.test(this.next) || LETTERS.has(this.next.slice(1)) || /^\\([dt]?frac|sqrt|mathbf|vec|text)$/.test(this.next))) nodes.push(space(1 / 6));
    }
    return nodes;
  }

  base(before) {
    const token = this.take();
    if (token === "{") {
      this.at--;
      return [this.group()];
    }
    if (token[0] === "\\" && token.length > 1) return this.command(token.slice(1), before);
    if (/^\.?\d/.test(token)) return [this.styled("mn", token)];
    if (/^[a-zA-Z]$/.test(token)) return [this.letter(token)];
    if (/^[+\-−±∓]$/.test(token)) return [this.sign(token === "-" ? "−" : token, before)];
    if (token === "$") return []; // inside another delimiter
    if (/^[%#"°]$/.test(token)) return [["mi", { mathvariant: "normal" }, token]];
    if (token === "~") return [space(0.25)];
    if (/^[}&\\]$/.test(token)) throw new Error(`${token} is out of place`);
    if (/^[()[\]]$/.test(token)) return [operator(token, { stretchy: "false" })];
    if (token === "|" || token === "‖") return [operator(token, { stretchy: "false", lspace: "0", rspace: "0" })];
    if (token === "*") return [operator("∗")];
    if (token === "/") return [operator("/", { lspace: "0", rspace: "0", stretchy: "false" })];
    if (/^\p{L}$/u.test(token)) return [/[\u0370-\u03ff]/.test(token) ? ["mi", {}, token] : ["mtext", {}, token]];
    return [/^[\p{S},;:!]$/u.test(token) ? operator(token) : ["mi", { mathvariant: "normal" }, token]];
  }

  // Plus and minus: signs at the beginning, or after another operator; else between what they join.
  sign(sign, before) {
    const last = before[before.length - 1];
    return operator(sign, !last || (isOperator(last) && !closes(last)) ? { form: "prefix" } : { form: "infix" });
  }

  letter(character) {
    const { font } = this;
    const older = OLDER[font]?.indexOf(character) ?? -1;
    if (older >= 0 && older % 2 === 0) return ["mi", { mathvariant: "normal" }, OLDER[font][older + 1]];
    if (ALPHABETS[font]) {
      const lower = character >= "a";
      return ["mi", {}, String.fromCodePoint(ALPHABETS[font][Number(lower)] + character.charCodeAt(0) - (lower ? 97 : 65))];
    }
    return this.styled("mi", character);
  }

  styled(tag, text) {
    const classes = { bold: { class: "bold" }, sans: { class: "sans" }, mono: { class: "mono" } }[this.font] ?? {};
    return [tag, tag === "mi" && this.font && this.font !== "italic" ? { mathvariant: "normal", ...classes } : classes, text];
  }

  // Neighbouring upright letters are one word.
  words(node) {
    if (node[0] !== "mrow") return node;
    const merged = [];
    for (const child of node.slice(2)) {
      const last = merged[merged.length - 1];
      if (last && last[0] === "mi" && child[0] === "mi" && child[1].mathvariant && last[1].mathvariant && last[1].class === child[1].class) last[2] += child[2];
      else merged.push([...child]);
    }
    return rowOf(merged);
  }

  command(name, before) {
    if (name === "prime") return [operator("′", { lspace: "0", rspace: "0" })];
    if (LETTERS.has(name)) return [this.styled("mi", LETTERS.get(name))];
    if (UPRIGHT.has(name)) return [["mi", { mathvariant: "normal", ...(this.font === "bold" && { class: "bold" }) }, UPRIGHT.get(name)]];
    if (name === "pm" || name === "mp") return [this.sign(OPERATORS.get(name), before)];
    if (OPERATORS.has(name)) return [this.operator(name)];
    if (LARGE.has(name)) {
      const [sign, movable] = LARGE.get(name);
      return [Object.assign(operator(sign, movable ? { movablelimits: "true" } : {}), { limits: movable })];
    }
    if (FUNCTIONS.has(name)) return [Object.assign(["mi", { mathvariant: "normal" }, name], { spaced: true })];
    if (LIMITS.has(name)) return [this.named(name.replace(/^(lim|arg)(?=inf|sup|max|min)/, "$1\u2009"), true)];
    if (Object.hasOwn(SPACES, name)) return [space(SPACES[name])];
    if (Object.hasOwn(SIZES, name)) return [this.fence({ minsize: `${SIZES[name]}em`, maxsize: `${SIZES[name]}em`, stretchy: "true" })].filter(Boolean);
    if (ACCENTS.has(name)) return [this.accent(name)];
    if (Object.hasOwn(SWITCHES, name)) {
      this.font = SWITCHES[name];
      return [];
    }
    if (Object.hasOwn(FONTS, name)) return [this.within(() => { this.font = FONTS[name]; return this.words(this.argument()); })];
    if (TEXTS.has(name)) return [this.text(name)];
    if (NOTHING.has(name)) return [];
    if (/^[%$&#_{}|]$/.test(name)) return [this.escaped(name)];
    if (name === "@") return [operator("@")];
    if (/^[()/-]$/.test(name)) return []; // a delimiter of formulas inside one; a correction of spaces
    if (!Object.hasOwn(COMMANDS, name)) throw new Error(`\\${name} is not known`);
    const found = COMMANDS[name](this);
    return Array.isArray(found[0]) || !found.length ? found : [found];
  }

  escaped(name) {
    if (name === "|") return operator("‖", { stretchy: "false", lspace: "0", rspace: "0" });
    return name === "{" || name === "}" ? operator(name, { stretchy: "false" }) : ["mi", { mathvariant: "normal" }, name];
  }

  operator(name) {
    const sign = OPERATORS.get(name);
    if (name === "mid") return operator(sign, { lspace: "0.28em", rspace: "0.28em", stretchy: "false" });
    if (name === "colon") return operator(sign, { lspace: "0", rspace: "0.28em" });
    if (/^[|‖/\\]$/.test(sign)) return operator(sign, { stretchy: "false", lspace: "0", rspace: "0" });
    return operator(sign, /^[()[\]{}⟨⟩⌊⌋⌈⌉↑↓↕⇑⇓⇕→←↔⇒⇐⇔⟶⟵⟷⟹⟸⟺]$/.test(sign) ? { stretchy: "false" } : {});
  }

  named(text, limits) {
    return Object.assign(operator(text, { ...(limits && { movablelimits: "true" }), form: "prefix", lspace: "0", rspace: "0" }), { limits, spaced: true });
  }

  // The sign of a delimiter; null for none.
  delimiter() {
    const token = this.take();
    if (token === ".") return null;
    const written = { "<": "⟨", ">": "⟩", "\\|": "‖", "\\{": "{", "\\}": "}" };
    const sign = Object.hasOwn(written, token) ? written[token] : token[0] === "\\" ? OPERATORS.get(token.slice(1)) : token;
    if (sign === undefined || /^[\w{}]/.test(token)) throw new Error(`${token} is no delimiter`);
    return sign;
  }

  fence(attributes) {
    const sign = this.delimiter();
    return sign && operator(sign, attributes);
  }

  accent(name) {
    const sign = ACCENTS.get(name);
    const wide = name.startsWith("wide");
    const base = this.argument();
    if (name === "bar") return ["mrow", { class: "overline" }, base];
    return ["mover", { accent: "true" }, base, operator(sign, { stretchy: String(wide) })];
  }

  // \text{…}: words, in which $…$ is a formula again.
  text(name) {
    const source = this.source();
    const style = { textbf: "bold", textit: "slanted", emph: "slanted", textsf: "sans", texttt: "mono" }[name];
    const pieces = source.split(/(\$[^$]*\$|\\\([^]*?\\\)|\\[a-zA-Z]+\s*\{[^{}]*\}|\\[a-zA-Z]+)/);
    const nodes = pieces.filter(Boolean).flatMap((piece) => {
      if (/^\$[^]*\$$/.test(piece)) return this.inner(piece.slice(1, -1));
      if (/^\\\(/.test(piece)) return this.inner(piece.slice(2, -2));
      if (/^\\[a-zA-Z]/.test(piece)) return this.inner(piece);
      const words = piece.replace(/\\\\/g, " ").replace(/\\([^a-zA-Z])/g, "$1").replace(/[{}]/g, "")
        .replace(/~|\s+/g, "\u00a0").replace(/---?/g, "–").replace(/``|''/g, '"');
      return [["mtext", style ? { class: style } : {}, words]];
    });
    return name === "fbox" ? ["mrow", { class: "boxed" }, ...nodes] : rowOf(nodes);
  }

  // Rows of cells up to where `ends` is true: a table, or the cell alone where there is no other.
  //   columns: the letters of an array; aligned: pairs of columns, right and left; fences: what stands around; bare: not in an environment.
  table({ columns = "", aligned = false, fences = ["", ""], display = aligned, small = false, bare = false }, ends) {
    const rows = [[]];
    const lines = [];
    const cellEnds = () => ends() || this.next === "&" || this.next === "\\\\" || this.next === "\\cr" || this.next === "\\tabularnewline";
    for (;;) {
      this.skipSpace();
      while (/^\\[hc]line$/.test(this.next)) {
        lines.push(rows.length - 1);
        if (this.take() === "\\cline") this.source();
        this.skipSpace();
      }
      if (ends()) break;
      rows[rows.length - 1].push(this.within(() => this.list(cellEnds)));
      if (ends()) break;
      if (this.tokens[this.at++] === "&") continue;
      if (this.next === "[" && /^\[\s*-?[\d.]+\s*[a-z]{2}\s*\]/.test(this.tokens.slice(this.at, this.at + 12).join(""))) this.optional();
      rows.push([]);
    }
    if (!rows[rows.length - 1].length && rows.length > 1) rows.pop();
    if (bare && rows.length === 1 && rows[0].length < 2) return rows[0][0] ?? [];
    const pairs = aligned && rows.some((row) => row.length > 1);
    const side = (i) => {
      if (aligned) return pairs ? (i % 2 ? "left tight" : "right") : bare && "left";
      return { l: "left", r: "right" }[columns.replace(/[^lcr]/g, "")[i]];
    };
    const body = rows.map((row, r) => ["mtr", {}, ...row.map((cell, i) => {
      const under = r === rows.length - 1 && lines.includes(rows.length);
      const ruled = columns.split(/[lcr]/)[i + 1]?.includes("|");
      const edge = i === 0 && columns.startsWith("|");
      const classes = [side(i), edge && "edge", ruled && "ruled", lines.includes(r) && "above", under && "below"].filter(Boolean).join(" ");
      // An operator that begins a cell of an alignment still stands between two things.
      if (pairs && i % 2 && cell.length && isOperator(cell[0]) && cell[0][1].form === "prefix" && cell.length > 1) cell[0][1].form = "infix";
      return ["mtd", classes ? { class: classes } : {}, ...cell];
    })]);
    const table = ["mtable", { ...(display && { displaystyle: "true" }), ...(small && { class: "small" }) }, ...body];
    const [left, right] = fences.map((sign, i) => (sign ? [operator(sign, { stretchy: "true", form: i ? "postfix" : "prefix" })] : []));
    return [...left, table, ...right];
  }

  length() {
    this.skipSpace();
    const [found] = /^-?\s*[\d.]+\s*[a-z]{2}/.exec(this.tokens.slice(this.at, this.at + 8).join("")) ?? [];
    if (!found) throw new Error("a length is missing");
    for (let left = found.length; left > 0; this.at++) {
      const token = this.next;
      if (token.length > left) this.tokens.splice(this.at, 1, token.slice(0, left), token.slice(left));
      left -= token.length;
    }
    return found;
  }

  width(length) {
    const [, number, unit] = /^\s*(-?[\d.]+)\s*([a-z]{2})/.exec(length) ?? [];
    const em = Number(number) * ({ em: 1, ex: 0.43, mu: 1 / 18, pt: 0.1, cm: 2.85, mm: 0.285, in: 7.2 }[unit] ?? 0);
    return space(Math.min(Math.max(em || 0, -2), 20));
  }
}

const mathElement = ([tag, attributes, ...children]) => {
  const element = document.createElementNS("http://www.w3.org/1998/Math/MathML", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children.map((child) => (typeof child === "string" ? child : mathElement(child))));
  return element;
};
