// The figures of an evaluation: accuracy against N, by level and by subject, and the evaluators as judges.

const COLOURS = 8;
const colourOf = (list, name) => `var(--c${Math.max(0, list.indexOf(name)) % COLOURS})`;
const evaluatorsOf = (evaluation) => [...new Set(evaluation.rows.map((row) => row.evaluator).filter(Boolean))];
const byOf = { majority: "majority voting", pass: "any right (pass@N)" };

// What a row's line is called, whatever its N.
const lineName = (row) => byOf[row.decoding] ?? `${row.decoding === "weighted" ? "weighted voting" : "best-of-N"}, ${row.evaluator}`;

function styleOf(evaluation, row) {
  if (row.decoding === "majority") return { colour: "var(--grey)", dash: "dashed" };
  if (row.decoding === "pass") return { colour: "var(--grey)", dash: "solid", thin: true };
  return { colour: colourOf(evaluatorsOf(evaluation), row.evaluator), dash: row.decoding === "weighted" ? "solid" : "dotted" };
}

function againstN(core) {
  const panels = core.evaluations.flatMap((evaluation) => [...new Set(evaluation.rows.filter((row) => row.n > 1).map((row) => row.generator))]
    .map((generator) => ({ evaluation, generator })));
  if (!panels.length) return null;
  return make("section", { id: "samples" }, make("h2", {}, "Accuracy against N"),
    make("p", { class: "says" }, "What N samples of each problem would give, averaged over subsets of those drawn; bands are 95 % intervals over the problems. " +
      "Differences between methods are surer than their bands suggest: the table above has them paired."),
    panels.map(({ evaluation, generator }) => againstNOf(core, evaluation, generator)));
}

function againstNOf(core, evaluation, generator) {
  const rows = evaluation.rows.filter((row) => row.generator === generator && row.decoding !== "greedy" &&
    (!row.aggregation || row.aggregation === evaluation.adopted[row.decoding]));
  const byLine = Map.groupBy ? Map.groupBy(rows, lineName) : grouped(rows, lineName);
  const greedy = evaluation.rows.find((row) => row.generator === generator && row.decoding === "greedy");
  const entries = [...byLine].map(([name, own]) => ({ key: name, name, rows: own, ...styleOf(evaluation, own[0]) }));
  if (greedy) entries.push({ key: "greedy", name: "greedy", colour: "var(--grey)", dash: "dotted" });
  for (const { evaluator, name } of evaluation.paper) entries.push({ key: `paper ${evaluator}`, name: `paper: ${name}`, colour: colourOf(evaluatorsOf(evaluation), evaluator), dash: "paper" });
  const hidden = new Set(entries.filter((entry) => / likelihood$/.test(entry.key)).map((entry) => entry.key));
  const body = make("div");
  const sizes = [...new Set(rows.map((row) => row.n))];
  const refresh = () => {
    const shown = entries.filter((entry) => !hidden.has(entry.key));
    const far = Math.max(...sizes, ...evaluation.paper.filter((curve) => !hidden.has(`paper ${curve.evaluator}`)).flatMap((curve) => curve.n));
    const x = { log: true, domain: [1, far], ticks: powers(far), format: (n) => String(n) };
    const charts = groupsOf(evaluation).map((group) => {
      const series = shown.flatMap((entry) => seriesOf(entry, group, greedy, sizes, evaluation));
      return captioned(`${group[0].toUpperCase()}${group.slice(1)} (${rows[0][group].problems})`, null,
        lines({ series, x, y: accuracyAxis(series), xLabel: "N", height: 260, tip: percent, label: `Accuracy against N, ${group} problems: ${summaryOf(series)}` }));
    });
    body.replaceChildren(legend(entries, hidden, refresh), make("div", { class: "panels" }, charts));
  };
  refresh();
  const title = core.evaluations.length > 1 || panelsOf(core) > 1 ? make("h3", {}, `${evaluationName(evaluation, core.evaluations.length > 1)}: ${generator}`) : null;
  const table = numbers(["Decided by", ...groupsOf(evaluation).flatMap((group) => sizes.map((n) => `${group}, ${n}`))],
    [...byLine].map(([name, own]) => [name, ...groupsOf(evaluation).flatMap((group) => own.map((row) => percent(row[group].accuracy)))]));
  const source = evaluation.paper.length ? make("p", { class: "says" }, `Dash-dotted: the paper's own curves (${evaluation.paper[0].source}; ${figuresOf(evaluation.paper)}): majority, weighted and best-of-N.`) : null;
  return make("div", {}, title, body, source, table);
}

const figuresOf = (curves) => {
  const names = [...new Set(curves.flatMap((curve) => curve.figure.split("/")))];
  return `figure${names.length > 1 ? "s" : ""} ${names.join(", ")}`;
};

const panelsOf = (core) => new Set(core.evaluations.flatMap((e) => e.rows.filter((row) => row.n > 1).map((row) => `${e.run} ${e.name} ${row.generator}`))).size;

function grouped(list, name) {
  const groups = new Map();
  for (const item of list) groups.set(name(item), [...(groups.get(name(item)) ?? []), item]);
  return groups;
}

function seriesOf(entry, group, greedy, sizes, evaluation) {
  if (entry.key === "greedy") {
    const value = greedy[group];
    return [{ ...entry, bare: true, thin: true, points: sizes.map((n) => [n, value.accuracy, null, null]) }];
  }
  if (entry.key.startsWith("paper ")) {
    const curve = evaluation.paper.find((c) => `paper ${c.evaluator}` === entry.key);
    return Object.entries(curve[group]).map(([decoding, values]) => ({
      ...entry, bare: true, thin: decoding !== "weighted", name: `paper: ${byOf[decoding] ?? (decoding === "weighted" ? "weighted voting" : "best-of-N")}`,
      colour: decoding === "majority" ? "var(--grey)" : entry.colour, points: curve.n.map((n, i) => [n, values[i] / 100]),
    }));
  }
  return [{ ...entry, points: entry.rows.map((row) => [row.n, row[group].accuracy, ...(row[group].ci95 ?? [null, null])]) }];
}

function powers(far) {
  const found = [];
  for (let n = 1; n <= far; n *= far > 128 ? 4 : 2) found.push(n);
  if (found[found.length - 1] !== far && far / found[found.length - 1] > 1.4) found.push(far);
  return found;
}

function accuracyAxis(series) {
  const values = series.flatMap((one) => one.points.flatMap((point) => point.slice(1))).filter((value) => value !== null && value !== undefined);
  const low = Math.max(0, Math.floor((Math.min(...values, 1) - 0.02) * 10) / 10);
  const high = Math.min(1, Math.ceil((Math.max(...values, 0) + 0.02) * 10) / 10);
  return { domain: [low, high], ticks: ticks(low, high, 5), format: (value) => percent(value, 0) };
}

const summaryOf = (series) => series.map((one) => `${one.name} ${percent(one.points[0]?.[1])} to ${percent(one.points[one.points.length - 1]?.[1])} %`).join("; ");

// Bars by level and by subject

function byGroupSection(core) {
  const parts = core.evaluations.flatMap((evaluation) => {
    const rows = headline(evaluation, false);
    const many = core.evaluations.length > 1 ? `${evaluationName(evaluation, true)}: ` : "";
    const levels = rows.length && Object.keys(rows[0].levels).length ? [barsOf(evaluation, rows, "levels", `${many}By level`, "Level 1 is the easiest.", (level) => `level ${level}`)] : [];
    const subjects = evaluation.subjects.length && Object.keys(evaluation.subjects[0].subjects).length > 1
      ? [barsOf(evaluation, evaluation.subjects, "subjects", `${many}By subject`, "The subjects of the problems' source.", (name) => name)] : [];
    return [...levels, ...subjects, ...noAnswer(evaluation, many)];
  });
  return parts.length ? make("section", { id: "levels" }, make("h2", {}, "By level and subject"),
    make("p", { class: "says" }, "Accuracy in % of each way to decide at the largest N; the thin lines are 95 % intervals over the problems of the group."), parts) : null;
}

// Shares of solutions without a recognised answer, by level and by subject; nothing where all have one.
function noAnswer(evaluation, many) {
  const rows = evaluation.no_answer.filter((row) => [...Object.values(row.levels), ...Object.values(row.subjects)].some((c) => c.no_answer));
  if (!rows.length) return [];
  const line = (field, name, label) => make("tr", {}, make("th", { scope: "row" }, label), rows.map((row) => {
    const { graded, no_answer: none } = row[field][name];
    return make("td", {}, percent(none / graded), make("small", {}, `${none.toLocaleString("en")} of ${graded.toLocaleString("en")}`));
  }));
  const heading = (text) => make("tr", { class: "group" }, make("th", { colspan: rows.length + 1, scope: "colgroup" }, text));
  const levels = Object.keys(rows[0].levels).map((name) => line("levels", name, `level ${name}`));
  const subjects = Object.keys(rows[0].subjects).map((name) => line("subjects", name, name));
  return [make("div", {}, make("h3", {}, `${many}Without an answer`),
    make("p", { class: "says" }, "Share in % of the solutions, samples and greedy, in which no final answer is recognised; each counts as wrong."),
    make("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Without an answer" }, make("table", {},
      make("thead", {}, make("tr", {}, ["", ...rows.map((row) => row.generator)].map((name) => make("th", { scope: "col" }, name)))),
      make("tbody", {}, levels.length && subjects.length ? heading("By level") : null, levels, levels.length && subjects.length ? heading("By subject") : null, subjects))))];
}

function barsOf(evaluation, rows, field, title, says, nameOf) {
  const sampled = rows.find((row) => row.decoding !== "greedy")?.generator;
  const ordered = [...rows].sort((a, b) => (b.generator === sampled) - (a.generator === sampled));
  const entries = ordered.map((row) => {
    const name = row.decoding === "greedy" ? `greedy, ${row.generator}` : row.label;
    const look = row.decoding === "greedy"
      ? { colour: row.generator === sampled || !sampled ? "var(--grey)" : colourOf(rows.filter((r) => r.decoding === "greedy").map((r) => r.generator), row.generator), square: 0.45, pale: true }
      : { ...styleOf(evaluation, row), square: row.decoding === "weighted" || !row.evaluator ? 0.85 : 0.45, pale: row.decoding === "best_of_n" };
    return { key: keyOf(row), name, row, ...look };
  });
  const startHidden = (row) => row.decoding === "pass" || row.decoding === "best_of_n" || row.evaluator === "likelihood" || (row.decoding === "greedy" && sampled && row.generator !== sampled);
  const hidden = new Set(entries.filter((entry) => startHidden(entry.row)).map((entry) => entry.key));
  const groups = Object.keys(rows[0][field]);
  const body = make("div");
  const refresh = () => {
    const series = entries.filter((entry) => !hidden.has(entry.key)).map((entry) => ({
      ...entry, values: groups.map((g) => { const s = entry.row[field][g]; return s.accuracy === null ? null : { value: s.accuracy, low: s.ci95[0], high: s.ci95[1], problems: s.problems }; }),
    }));
    body.replaceChildren(legend(entries, hidden, refresh), make("div", { class: "scroll" }, bars({ groups: groups.map(nameOf), series, label: title })));
  };
  refresh();
  return make("div", {}, make("h3", {}, title), make("p", { class: "says" }, says), body,
    numbers(["Decided by", ...groups.map((g) => `${nameOf(g)} (${rows[0][field][g].problems})`)],
      entries.map((entry) => [entry.name, ...groups.map((g) => `${percent(entry.row[field][g].accuracy)} ${between(entry.row[field][g].ci95)}`)])));
}

// Evaluators as judges

function evaluatorsSection(core) {
  const parts = core.evaluations.filter((evaluation) => evaluation.quality.length).map((evaluation) => judgesOf(core, evaluation));
  return parts.length ? make("section", { id: "evaluators" }, make("h2", {}, "Evaluators as judges"), parts) : null;
}

function judgesOf(core, evaluation) {
  const judged = evaluation.judged;
  const options = [...new Set(judged.map((one) => one.judged))].sort((a, b) => (b === "steps") - (a === "steps"));
  const state = { judged: options.includes(evaluation.adopted.best_of_n) ? evaluation.adopted.best_of_n : options[0], group: focus(evaluation) };
  const body = make("div");
  const refresh = () => {
    const shown = judged.filter((one) => one.judged === state.judged && one.group === state.group);
    body.replaceChildren(make("div", { class: "panels pairs" }, shown.map((one) => {
      const colour = colourOf(evaluatorsOf(evaluation), one.evaluator);
      const name = new Set(judged.map((other) => other.generator)).size > 1 ? `${one.evaluator} of ${one.generator}` : one.evaluator;
      return make("div", { class: "pair" }, make("h4", {}, name),
        captioned("Scores", "Shares of the right ones above the line, of the wrong ones below it; apart is good.", histogram({ ...one, label: `Histogram of scores of ${name}` })),
        captioned("Reliability", `How often scores of a size are right; on the diagonal they mean what they say (mean distance ${one.calibration_error.toFixed(3)}).`,
          reliability({ points: one.reliability, colour, label: `Reliability of ${name}` })));
    })));
  };
  refresh();
  const naming = (what) => (what === "steps" ? "each step, against its label" : `solutions, by ${what} of their step scores`);
  return make("div", {}, core.evaluations.length > 1 && make("h3", {}, evaluationName(evaluation, true)), qualityTable(evaluation),
    options.length ? [make("div", { class: "controls" },
      choice("Judged", options.map((what) => [what, naming(what)]), state.judged, (value) => { state.judged = value; refresh(); }),
      choice("Problems", GROUPS.filter((g) => judged.some((one) => one.group === g)).map((g) => [g, g]), state.group, (value) => { state.group = value; refresh(); })), body] : null);
}

function qualityTable(evaluation) {
  const area = (value) => (value === null || value === undefined ? "–" : value.toFixed(3));
  const cell = (judgement) => make("td", {}, area(judgement?.auc), make("small", {}, `within ${area(judgement?.auc_within)}`),
    judgement?.balanced_accuracy ? make("small", {}, percent(judgement.balanced_accuracy)) : null);
  const groups = groupsOf(evaluation);
  const rows = evaluation.quality.flatMap((row) => {
    const names = Object.keys(row.outcome.all).filter((name) => name !== "samples" && name !== "right");
    const own = names.map((name) => make("tr", {}, make("th", { scope: "row" }, `${row.evaluator}, solutions by ${name === "logprob" ? "log-probability" : name}`), groups.map((g) => cell(row.outcome[g][name]))));
    if (row.steps) own.unshift(make("tr", { class: "strong" }, make("th", { scope: "row" }, `${row.evaluator}, steps`), groups.map((g) => cell(row.steps[g]))));
    return own;
  });
  return [make("p", { class: "says" }, "Area under the ROC curve: how often a right one scores above a wrong one (0.5 is chance), pooled over the problems. Small: the same within a problem, mean over the problems that have right and wrong ones, which is what choosing among a problem's solutions needs; and accuracy in % at threshold 0.5, balanced between right and wrong ones."),
    make("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Evaluators" }, make("table", {},
      make("thead", {}, make("tr", {}, ["Evaluator, and what it judges", ...groups].map((name) => make("th", { scope: "col" }, name)))), make("tbody", {}, rows)))];
}
