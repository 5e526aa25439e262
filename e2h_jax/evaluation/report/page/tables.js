// The results: tables with intervals.

const GROUPS = ["easy", "hard", "all"];

const keyOf = (row) => [row.generator, row.decoding, row.evaluator, row.aggregation, row.n].join("\t");
const evaluationName = (evaluation, many) => (many ? `${evaluation.run} · ${evaluation.name}` : evaluation.run);

// Rows of the largest N; by the adopted aggregations, or by all.
function headline(evaluation, every) {
  const most = {};
  for (const row of evaluation.rows) most[row.generator] = Math.max(row.n, most[row.generator] ?? 0);
  return evaluation.rows.filter((row) => row.decoding === "greedy" ||
    (row.n === most[row.generator] && (every || !row.aggregation || row.aggregation === evaluation.adopted[row.decoding])));
}

// Without levels all problems alone; a group without problems has no column.
const groupsOf = (evaluation) => GROUPS.filter((group) => evaluation.rows[0][group].problems);
const focus = (evaluation) => (evaluation.rows.some((row) => row.hard.problems) ? "hard" : "all");

const statisticCell = (statistic) => statistic.accuracy === null || statistic.accuracy === undefined
  ? make("td", {}, "–")
  : make("td", {}, percent(statistic.accuracy), make("small", {}, between(statistic.ci95)));

function differenceCell(statistic) {
  if (!statistic || statistic.difference === null) return make("td", {}, "");
  return make("td", {}, signed(statistic.difference), make("small", {}, signedBetween(statistic.ci95)));
}

function resultsTable(evaluation, every) {
  const rows = headline(evaluation, every);
  const group = focus(evaluation);
  const groups = groupsOf(evaluation);
  const paired = new Map(evaluation.paired.map((row) => [keyOf(row), row[group]]));
  const named = new Set(rows.map((row) => row.generator)).size > 1;
  const body = [];
  const counted = rows[0];
  // The generators that were sampled first, each under its name; then those of which there is the greedy solution alone.
  const sampled = [...new Set(rows.filter((row) => row.decoding !== "greedy").map((row) => row.generator))];
  const line = (row, name) => make("tr", { class: row.decoding === "weighted" && row.aggregation === evaluation.adopted.weighted ? "strong" : null },
    make("th", { scope: "row" }, name), groups.map((g) => statisticCell(row[g])),
    make("td", {}, whisker(row[group], 0, 1)), differenceCell(paired.get(keyOf(row))));
  const heading = (text) => make("tr", { class: "group" }, make("th", { colspan: groups.length + 3, scope: "colgroup" }, text));
  for (const generator of sampled) {
    const own = rows.filter((row) => row.generator === generator);
    if (named) body.push(heading(`${generator}, ${Math.max(...own.map((row) => row.n))} samples a problem`));
    body.push(...own.map((row) => line(row, row.label)));
  }
  const others = rows.filter((row) => !sampled.includes(row.generator));
  if (others.length) {
    body.push(heading("Other generators, greedy"));
    body.push(...others.map((row) => line(row, row.generator)));
  }
  return make("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Results" }, make("table", {},
    make("thead", {}, make("tr", {}, make("th", { scope: "col" }, "Decided by"),
      groups.map((g) => make("th", { scope: "col" }, `${g} (${counted[g].problems})`)),
      make("th", { scope: "col" }, `${group}, 0 to 100`), make("th", { scope: "col" }, `${group}, minus majority`))),
    make("tbody", {}, body)));
}

// The same method in every evaluation: a row each, with a dot for each run.
function acrossTable(core) {
  const group = core.evaluations.some((evaluation) => focus(evaluation) === "hard") ? "hard" : "all";
  const methods = new Map();
  for (const [i, evaluation] of core.evaluations.entries()) {
    for (const row of headline(evaluation, false)) {
      const name = `${row.generator}: ${row.label}`;
      methods.set(name, methods.get(name) ?? []);
      methods.get(name)[i] = row[group];
    }
  }
  const runs = core.evaluations.map((_, i) => i);
  const colours = runs.map((i) => `var(--c${i % COLOURS})`);
  return [make("h3", {}, "Side by side"), make("p", { class: "says" }, `Accuracy on ${group} problems in each run.`),
    make("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Runs side by side" }, make("table", {},
      make("thead", {}, make("tr", {}, make("th", { scope: "col" }, "Decided by"),
        runs.map((i) => make("th", { scope: "col" }, make("span", { style: `color:${colours[i]}`, "aria-hidden": "true" }, "● "), evaluationName(core.evaluations[i], false))),
        make("th", { scope: "col" }, `${group}, 0 to 100`))),
      make("tbody", {}, [...methods].map(([name, statistics]) => make("tr", {}, make("th", { scope: "row" }, name),
        runs.map((i) => (statistics[i] ? statisticCell(statistics[i]) : make("td", {}, "–"))), make("td", {}, dots(runs.map((i) => statistics[i]), colours)))))))];
}

function comparedTable(evaluation) {
  if (!evaluation.compared.length) return null;
  const ends = evaluation.compared.flatMap((row) => row.hard.ci95 ?? row.all.ci95 ?? []);
  const [low, high] = [Math.min(0, ...ends), Math.max(0, ...ends)];
  const group = focus(evaluation);
  return [make("h3", {}, "Generators compared"),
    make("p", { class: "says" }, "Accuracy of one generator's greedy solutions minus another's, in points, paired by problem."),
    make("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Generators compared" }, make("table", {},
      make("thead", {}, make("tr", {}, ["", ...groupsOf(evaluation), group].map((cell) => make("th", { scope: "col" }, cell)))),
      make("tbody", {}, evaluation.compared.map((row) => make("tr", {}, make("th", { scope: "row" }, `${row.generator} minus ${row.minus}`),
        groupsOf(evaluation).map((g) => differenceCell(row[g])), make("td", {}, whisker(row[group], low, high, 0)))))))];
}

// What lies behind the table of each generator that was sampled (of all, where none was).
function countsOf(evaluation) {
  const sampled = new Set(evaluation.rows.filter((row) => row.decoding !== "greedy").map((row) => row.generator));
  return Object.entries(evaluation.graded).filter(([name]) => sampled.has(name) || !sampled.size).map(([name, counts]) =>
    make("p", { class: "says" }, `${name}: ${counts.graded.toLocaleString("en")} solutions graded, ` +
      `${counts.no_answer.toLocaleString("en")} without an answer, ${counts.unfinished.toLocaleString("en")} cut off by length, ` +
      `${counts.undecided.toLocaleString("en")} undecided (counted as wrong).`));
}

function resultsSection(core) {
  const many = core.evaluations.length > 1;
  let every = false;
  const body = make("div");
  const refresh = () => replace(body, core.evaluations.map((evaluation) => make(many ? "details" : "div", many ? { class: "run" } : {},
    many && make("summary", {}, make("h3", {}, evaluationName(evaluation, many))), resultsTable(evaluation, every), comparedTable(evaluation),
    countsOf(evaluation),
    evaluation.seconds && Object.keys(evaluation.seconds).length
      ? numbers(["Stage", "Seconds"], Object.entries(evaluation.seconds).map(([stage, s]) => [stage, s.toFixed(1)]), "Seconds of each stage") : null)));
  refresh();
  const says = "Accuracy in % with 95 % bootstrap intervals over the problems; the last column is the paired difference to majority voting with the same samples.";
  return make("section", { id: "results" }, make("h2", {}, "Results"), make("p", { class: "says" }, says),
    make("div", { class: "controls" }, tick("Every aggregation of the step scores", every, (value) => { every = value; refresh(); })), many && acrossTable(core), body);
}

// The few numbers to remember, of the first evaluation.
function facts(core) {
  if (!core.evaluations.length) return null;
  const evaluation = core.evaluations[0];
  const group = focus(evaluation);
  const rows = headline(evaluation, false).filter((row) => row[group].accuracy !== null);
  const best = (decoding) => rows.filter((row) => row.decoding === decoding && row.evaluator !== "likelihood")
    .sort((a, b) => b[group].accuracy - a[group].accuracy)[0];
  const found = ["majority", "weighted", "best_of_n", "pass"].map(best).filter(Boolean);
  const greedy = rows.filter((row) => row.decoding === "greedy");
  const start = greedy.find((row) => row.generator === (found[0] ?? greedy[0])?.generator);
  const learnt = greedy.filter((row) => row !== start).sort((a, b) => b[group].accuracy - a[group].accuracy)[0];
  const shown = [start && ["greedy", start], ...found.map((row) => [row.label, row]), learnt && [`greedy, ${learnt.generator}`, learnt]].filter(Boolean);
  return [make("p", { class: "quiet sentence" },
      `${core.evaluations.length > 1 ? `${evaluation.run}: ` : ""}${group} problems (${shown[0][1][group].problems}), accuracy in %; of each kind the best`),
    make("ul", { class: "facts" }, shown.map(([name, row]) => make("li", {}, make("b", {}, percent(row[group].accuracy)), make("span", {}, name))))];
}
