// Pure functions: where formulas stand in a text, aggregations of step scores, filters of problems, numbers as text. No DOM.

// A text as [{text}], [{tex, display}] and [{code}: a figure's source] in order; what is no text has its `source` too. Formulas stand in
// $$ $$, \[ \], \( \), $ $ and environments of lines, or are a \boxed{} alone. Code is text: a $ in it begins nothing.
const ENVIRONMENTS = "align\\*?|aligned|alignat\\*?|gather\\*?|equation\\*?|eqnarray\\*?|multline\\*?|cases|[pbvBV]?matrix|array";
const BRACES = "\\{(?:[^{}$]|\\{(?:[^{}$]|\\{(?:[^{}$]|\\{[^{}$]*\\})*\\})*\\})*\\}";
const PIECES = new RegExp([
  "(?<fence>`{3,}|~{3,})[^]*?\\k<fence>",
  "(?<!`)`(?!`)[^`\\n]+`(?!`)",
  "\\[asy\\](?<code>[^]*?)\\[\\/asy\\]",
  "\\$\\$(?<dollars>[^]+?)\\$\\$",
  "\\\\\\[(?<brackets>[^]+?)\\\\\\]",
  "\\\\\\((?<round>[^]+?)\\\\\\)",
  `(?<lines>\\\\begin\\{(?<name>${ENVIRONMENTS})\\}[^]*?\\\\end\\{\\k<name>\\})`,
  `(?<boxed>\\\\boxed\\s*${BRACES})`,
  "\\\\\\$",
  "\\$(?<dollar>(?:\\\\[^]|[^$\\\\])+?)\\$",
].join("|"), "g");

function segments(text) {
  const found = [];
  let end = 0;
  const plain = (piece) => {
    if (!piece) return;
    const last = found[found.length - 1];
    if (last && last.text !== undefined) last.text += piece;
    else found.push({ text: piece });
  };
  PIECES.lastIndex = 0;
  for (let match = PIECES.exec(text); match; match = PIECES.exec(text)) {
    const [source] = match;
    const { code, dollars, brackets, round, lines, boxed, dollar } = match.groups;
    if (dollar !== undefined && !isFormula(dollar)) {
      PIECES.lastIndex = match.index + 1; // the second dollar may begin a formula
      continue;
    }
    plain(text.slice(end, match.index));
    const display = dollars ?? brackets ?? lines;
    if (code !== undefined) found.push({ code: code.trim(), source });
    else if (display !== undefined) found.push({ tex: display, display: true, source });
    else if ((round ?? boxed ?? dollar) !== undefined) found.push({ tex: round ?? boxed ?? dollar, display: false, source });
    else plain(source === "\\$" ? "$" : source);
    end = match.index + source.length;
  }
  plain(text.slice(end));
  return found;
}

// "$5 and $" is no formula: it would end in a space and has no sign of TeX. Nor does a formula reach over a blank line or the beginning of another.
const isFormula = (tex) => !/\n\s*\n|\\[([]/.test(tex) && (/[\\^_={}]/.test(tex) || (!/^\s|\s$/.test(tex) && tex.length < 60));

// The beginning of a question on one line, as segments.
function beginning(text) {
  const found = [];
  let length = 0;
  for (const piece of segments(text)) {
    if (piece.code !== undefined) continue;
    found.push(piece.tex === undefined ? { text: piece.text.replace(/\s+/g, " ").slice(0, 160) } : { ...piece, display: false });
    length += (piece.text ?? piece.tex).length;
    if (length > 160) break;
  }
  return found;
}

const isTex = (answer) => /[\\^_]/.test(answer);

const EDGE = 1e-6; // as in evaluation/voting.py
const AGGREGATIONS = {
  prod: (scores) => scores.reduce((a, b) => a * b, 1),
  min: (scores) => Math.min(...scores),
  max: (scores) => Math.max(...scores),
  last: (scores) => scores[scores.length - 1],
  mean: (scores) => scores.reduce((a, b) => a + b, 0) / scores.length,
  mean_odds: (scores) => AGGREGATIONS.mean(scores.map(odds)),
  mean_logit: (scores) => 1 / (1 + Math.exp(-AGGREGATIONS.mean(scores.map((p) => Math.log(odds(p)))))),
};
const odds = (p) => Math.min(Math.max(p, EDGE), 1 - EDGE) / (1 - Math.min(Math.max(p, EDGE), 1 - EDGE));
const aggregated = (scores, name) => (scores && scores.length ? AGGREGATIONS[name](scores) : 0);

// The problems of an index that pass the filters, as their numbers in order.
//   wanted: {level, subject, search: "" for any; generator; decision: key; verdict: any|right|wrong|tied; change: any|changed|repaired|broken}
function filtered(index, wanted) {
  const own = index.generators[wanted.generator];
  const decision = own && own.decisions.find((d) => d.key === wanted.decision);
  const before = decision && baseline(own, decision);
  const words = wanted.search.toLowerCase().split(/\s+/).filter(Boolean);
  return index.id.map((_, number) => number).filter((number) => {
    if (wanted.level && String(index.level[number]) !== wanted.level) return false;
    if (wanted.subject && index.subject[number] !== wanted.subject) return false;
    if (words.length) {
      const text = [index.id[number], index.question[number], index.answer[number]].join(" ").toLowerCase();
      if (!words.every((word) => text.includes(word))) return false;
    }
    if (!decision) return true;
    const now = decision.accuracy[number];
    if (wanted.verdict !== "any" && verdictOf(now) !== wanted.verdict) return false;
    if (wanted.change === "any" || !before) return true;
    const then = before.accuracy[number];
    if (wanted.change === "changed") return differs(decision, before, number);
    return wanted.change === "repaired" ? now > then : now < then;
  });
}

const verdictOf = (accuracy) => (accuracy === 1 ? "right" : accuracy === 0 ? "wrong" : "tied");

// What a decision is compared with: re-ranking with the majority, the majority with the greedy solution.
function baseline(own, decision) {
  const key = { weighted: "majority", best_of_n: "majority", majority: "greedy" }[decision.decoding];
  return own.decisions.find((d) => d.key === key);
}

// Greedy answers that no sample gave have no index; then the verdicts tell whether the answer changed.
const differs = (one, other, number) =>
  one.winner[number] < 0 || other.winner[number] < 0
    ? one.accuracy[number] !== other.accuracy[number]
    : one.winner[number] !== other.winner[number];

const percent = (value, digits = 1) => (value === null || value === undefined ? "–" : (100 * value).toFixed(digits));
const signed = (value) => (value >= 0 ? "+" : "−") + Math.abs(100 * value).toFixed(1);
const between = (ci) => (ci ? `[${percent(ci[0])}, ${percent(ci[1])}]` : "");
const signedBetween = (ci) => (ci ? `[${signed(ci[0])}, ${signed(ci[1])}]` : "");
const score = (value) => (value > 0 && value < 0.005 ? "<.01" : value > 0.995 && value < 1 ? ">.99" : value.toFixed(2));

function short(value) {
  if (value === null) return "–";
  const size = Math.abs(value);
  if (size === 0) return "0";
  if (size >= 1e6) return (value / 1e6).toPrecision(3) + "M";
  if (size >= 1e4) return (value / 1e3).toPrecision(3) + "k";
  return size < 0.001 ? value.toExponential(1) : String(Number(value.toPrecision(3)));
}

// Round numbers from low to high, about `count` of them.
function ticks(low, high, count) {
  const raw = (high - low) / count;
  const unit = 10 ** Math.floor(Math.log10(raw));
  const step = unit * [1, 2, 2.5, 5, 10].find((factor) => factor * unit >= raw * 0.999);
  const found = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) found.push(Number((i * step).toPrecision(12)));
  return found;
}

// The colour of a score: orange for 0, none for a half, blue for 1.
const tint = (value, strength = 100) => {
  const weight = Math.round(Math.abs(value - 0.5) * 2 * strength);
  return `color-mix(in srgb, var(${value < 0.5 ? "--low" : "--high"}) ${weight}%, transparent)`;
};

if (typeof module !== "undefined") module.exports = { segments, beginning, aggregated, filtered, score, short, ticks, tint, isFormula };
