// The browser of problems: filters, the list, and one problem with why its answer won and every solution's steps.

const PER_PART = 20; // as in page.py
let browser = null;

function problemsSection(core) {
  const evaluations = core.evaluations.map((evaluation, number) => ({ evaluation, number })).filter(({ evaluation }) => evaluation.drawn.problems);
  const notes = core.evaluations.filter((evaluation) => evaluation.note).map((evaluation) => make("p", { class: "says" }, evaluation.note));
  if (!evaluations.length) return notes.length ? make("section", { id: "problems" }, make("h2", {}, "Problems"), notes) : null;
  browser = new Browser(core, evaluations);
  return make("section", { id: "problems" }, make("h2", {}, "Problems"), notes, browser.element);
}

class Browser {
  constructor(core, evaluations) {
    this.core = core;
    this.evaluations = evaluations;
    this.wanted = { level: "", subject: "", search: "", generator: "", decision: "", verdict: "any", change: "any" };
    this.controls = make("div", { class: "controls" });
    this.status = make("p", { class: "says", role: "status" });
    this.list = make("div", { class: "list", role: "group", "aria-label": "Problems" });
    this.seen = new IntersectionObserver((rows) => rows.forEach(({ target, isIntersecting }) => isIntersecting && this.fill(target)), { root: this.list, rootMargin: "600px 0px" });
    this.detail = make("article", { class: "open-problem", "aria-live": "polite" });
    this.panes = make("div", { class: "browser" }, this.list, this.detail);
    this.left = make("p", { class: "says" });
    this.element = make("div", {}, make("p", { class: "says" }, "Every problem with its solutions: their steps coloured by score, and why an answer won. ", make("span", { class: "keys" }, "Keys: j and k for the problems, ← and → for the solutions, ? for all.")),
      this.left, this.controls, this.status, this.panes);
    this.use(evaluations[0].number);
  }

  async use(number) {
    this.number = number;
    this.evaluation = this.core.evaluations[number];
    this.index = await part(`index-${number}`);
    const generators = Object.keys(this.index.generators);
    const sampled = generators.filter((name) => this.index.generators[name].samples);
    this.choose(sampled[0] ?? generators[0]);
    const { shown, drawn } = this.evaluation;
    this.left.textContent = shown.samples < drawn.samples || shown.problems < drawn.problems
      ? `To keep this page small it ${shown.listed < drawn.problems ? `lists the first ${shown.listed} of ${drawn.problems} problems and ` : ""}holds the solutions of ${shown.problems < drawn.problems ? `the first ${shown.problems} of ${drawn.problems}` : `all ${drawn.problems}`} problems, ` +
        `the first ${shown.samples} of ${drawn.samples} samples of each. All numbers, and the tables of votes, count all samples.` : "";
    this.left.hidden = !this.left.textContent;
  }

  get own() { return this.index.generators[this.wanted.generator]; }
  get decision() { return this.own.decisions.find((d) => d.key === this.wanted.decision); }

  choose(generator) {
    this.wanted.generator = generator;
    const decisions = this.own.decisions;
    if (!this.decision) this.wanted.decision = (this.bestDecision() ?? decisions[decisions.length - 1]).key;
    this.evaluator = this.own.evaluators.includes(this.decision.evaluator) ? this.decision.evaluator : this.own.evaluators[0];
    this.drawControls();
    this.refresh();
  }

  // Weighted voting by the evaluator with which it is right most often.
  bestDecision() {
    const right = (d) => d.accuracy.reduce((a, b) => a + b, 0);
    return this.own.decisions.filter((d) => d.decoding === "weighted" && d.evaluator !== "likelihood").sort((a, b) => right(b) - right(a))[0];
  }

  drawControls() {
    const { wanted, index } = this;
    const set = (name) => (value) => { wanted[name] = value; this.refresh(); };
    const unique = (list) => [...new Set(list.filter((value) => value !== null))].sort((a, b) => String(a).localeCompare(b, "en", { numeric: true }));
    const levels = unique(index.level);
    const subjects = unique(index.subject);
    const generators = Object.keys(index.generators);
    this.search = make("input", { type: "search", placeholder: "Search (/)", "aria-label": "Search in questions, answers and ids", value: wanted.search,
      oninput: (event) => set("search")(event.target.value) });
    const before = baseline(this.own, this.decision);
    if (!before) wanted.change = "any";
    replace(this.controls,
      this.search,
      this.evaluations.length > 1 && choice("Of", this.evaluations.map(({ evaluation, number }) => [String(number), evaluationName(evaluation, true)]), String(this.number), (value) => this.use(Number(value))),
      generators.length > 1 && choice("Generator", generators.map((name) => [name, name]), wanted.generator, (value) => this.choose(value)),
      choice("Decided by", this.own.decisions.map((d) => [d.key, d.label]), wanted.decision, (value) => {
        wanted.decision = value;
        if (this.decision.evaluator && this.own.evaluators.includes(this.decision.evaluator)) this.evaluator = this.decision.evaluator;
        this.drawControls();
        this.refresh();
        this.show(this.selected);
      }),
      choice("Verdict", [["any", "any"], ["right", "right"], ["wrong", "wrong"], ["tied", "tied"]], wanted.verdict, set("verdict")),
      before && choice(`Against ${before.label}`, [["any", "any"], ["changed", "voting changed the answer"], ["repaired", "repaired: now right"], ["broken", "broken: now wrong"]], wanted.change, set("change")),
      levels.length > 1 && choice("Level", [["", "any"], ...levels.map((level) => [String(level), String(level)])], wanted.level, set("level")),
      subjects.length > 1 && choice("Subject", [["", "any"], ...subjects.map((name) => [name, name])], wanted.subject, set("subject")));
  }

  refresh() {
    this.numbers = filtered(this.index, this.wanted);
    const right = this.numbers.filter((number) => this.decision.accuracy[number] === 1).length;
    this.status.textContent = `${this.numbers.length.toLocaleString("en")} of ${this.index.id.length.toLocaleString("en")} problems; ${this.decision.label} is right on ${right.toLocaleString("en")} of them.`;
    replace(this.list, this.numbers.length ? this.numbers.map((number) => this.row(number))
      : make("p", { class: "none" }, "No problem passes these filters."));
    this.seen.disconnect();
    for (const row of this.list.querySelectorAll("button")) this.seen.observe(row);
    if (!this.numbers.includes(this.selected)) {
      this.selected = undefined;
      this.panes.classList.remove("opened");
      this.detail.replaceChildren();
      if (this.numbers.length && innerWidth > 860) this.show(this.first());
    }
    this.mark();
  }

  // Where nothing is chosen yet, a problem that shows something: one where re-ranking made the answer right.
  first() {
    const before = baseline(this.own, this.decision);
    const telling = before && this.numbers.find((number) => this.decision.accuracy[number] === 1 && before.accuracy[number] === 0);
    const chosen = telling ?? this.numbers[0];
    requestAnimationFrame(() => { // once the rows have their places; by then, a filter may have removed this one
      const row = this.list.querySelector(`[data-number="${chosen}"]`);
      if (row) this.list.scrollTop = row.offsetTop - this.list.offsetTop - 90;
    });
    return chosen;
  }

  row(number) {
    const { index, own } = this;
    const facts = [index.id[number], index.level[number] !== null && `level ${index.level[number]}`, index.subject[number]].filter(Boolean).join(" · ");
    return make("button", { type: "button", "data-number": number, onclick: () => this.show(number, true) },
      verdictMark(this.decision.accuracy[number]), make("span", { class: "ask" }),
      own.samples ? make("span", { class: "count", title: `${own.right[number]} of ${own.samples} samples are right` }, `${own.right[number]}/${own.samples}`) : null, make("small", {}, facts));
  }

  // The question of a row that comes into view, its formulas among the words: of ten thousand rows few ever do.
  fill(row) {
    const ask = row.querySelector(".ask");
    if (!ask.hasChildNodes()) fill(ask, {}, showAll(beginning(this.index.question[Number(row.dataset.number)]).map((piece) => piece.text ?? piece)));
  }

  mark() {
    for (const row of this.list.children) row.setAttribute("aria-current", String(Number(row.dataset.number) === this.selected));
  }

  async show(number, opened = false) {
    if (number === undefined) return;
    this.selected = number;
    this.mark();
    if (opened) this.panes.classList.add("opened");
    const where = Math.floor(number / PER_PART);
    const held = number < this.evaluation.shown.problems;
    const details = held ? await part(`part-${this.number}-${where}`) : null;
    if (this.selected !== number) return; // another was chosen meanwhile
    replace(this.detail, problemView(this, number, held ? details[number % PER_PART] : null));
    if (opened && innerWidth <= 860) this.panes.scrollIntoView({ block: "start" });
  }

  step(by) {
    const at = this.numbers.indexOf(this.selected);
    const next = this.numbers[Math.max(0, Math.min(this.numbers.length - 1, at + by))];
    if (next === undefined) return;
    this.show(next, true);
    const row = this.list.querySelector(`[data-number="${next}"]`);
    if (row) row.scrollIntoView({ block: "nearest", behavior: "instant" });
  }

  solution(by) {
    const all = [...this.detail.querySelectorAll("details.solution")];
    if (!all.length) return;
    const at = all.findIndex((one) => one.open);
    const next = all[Math.max(0, Math.min(all.length - 1, at + by))];
    for (const one of all) one.open = one === next;
    next.querySelector("summary").focus({ preventScroll: true });
    next.scrollIntoView({ block: "nearest" });
  }

  // True if the key was one of ours.
  key(key) {
    const box = this.element.getBoundingClientRect();
    const inView = box.top < innerHeight * 0.6 && box.bottom > 120;
    const actions = {
      j: () => this.step(1), k: () => this.step(-1), e: () => this.nextEvaluator(),
      "/": () => { this.element.scrollIntoView(); this.search.focus({ preventScroll: true }); },
      ...(inView && { ArrowDown: () => this.step(1), ArrowUp: () => this.step(-1), ArrowRight: () => this.solution(1), ArrowLeft: () => this.solution(-1) }),
    };
    if (!Object.hasOwn(actions, key)) return false;
    if (!inView && "jke".includes(key)) this.element.scrollIntoView();
    actions[key]();
    return true;
  }

  nextEvaluator() {
    const all = this.own.evaluators;
    this.colourBy(all[(all.indexOf(this.evaluator) + 1) % all.length]);
  }

  colourBy(evaluator) {
    this.evaluator = evaluator;
    this.show(this.selected);
  }
}

const verdictMark = (accuracy) => {
  const verdict = verdictOf(accuracy);
  const [sign, name] = { right: ["✓", "right"], wrong: ["✗", "wrong"], tied: ["≈", "tied"] }[verdict];
  return make("span", { class: verdict, title: name, role: "img", "aria-label": name }, sign);
};

// Nodes as markdown.js has them: strings, trees of its tags, formulas and figures. A string becomes a text node, whatever is in it.
const show = (node) => {
  if (typeof node === "string") return node;
  if (node.tex !== undefined) return formula(node);
  if (node.code !== undefined) return make("details", {}, make("summary", {}, "figure (Asymptote source)"), make("pre", {}, node.code));
  const [tag, attributes, ...children] = node;
  const shown = make(tag, attributes, showAll(children));
  return tag === "table" ? make("div", { class: "scroll" }, shown) : shown;
};

// A display ends its line itself.
const showAll = (nodes) => nodes.map((node, i) => show(typeof node === "string" && nodes[i - 1]?.display ? node.replace(/^[ \t]*\n/, "") : node));

// A text without Markdown: problems and reference solutions.
const rich = (text) => showAll(segments(text).map((piece) => piece.text ?? piece));

// A formula; its source where it cannot be read.
function formula({ tex, display, source }) {
  try {
    return make("span", { title: tex.trim() }, mathElement(formulaTree(tex, display)));
  } catch (error) {
    return make("code", { class: "unread", title: `Not shown as a formula: ${error.message}.` }, source ?? tex);
  }
}

const answerView = (text) => make("span", { class: "answer", title: text }, text === null ? "none" : isTex(text) ? formula({ tex: text, display: false }) : text);

function problemView(browser, number, details) {
  const { index, own, decision } = browser;
  const facts = [index.level[number] !== null && `level ${index.level[number]}`, index.subject[number]].filter(Boolean).join(" · ");
  return [
    make("div", { class: "bar-line" },
      make("h3", {}, index.id[number], facts && make("span", { class: "quiet", style: "font-weight:400" }, ` · ${facts}`)),
      make("span", { class: "tools" },
        make("button", { type: "button", class: "back", onclick: () => { browser.panes.classList.remove("opened"); browser.panes.scrollIntoView(); } }, "Back to the list"),
        make("button", { type: "button", title: "Previous problem (k)", "aria-label": "Previous problem", onclick: () => browser.step(-1) }, "↑"),
        make("button", { type: "button", title: "Next problem (j)", "aria-label": "Next problem", onclick: () => browser.step(1) }, "↓"))),
    make("div", { class: "question" }, rich(index.question[number])),
    make("p", {}, "Right answer: ", answerView(index.answer[number])),
    details?.solution ? make("details", {}, make("summary", {}, "Reference solution"), make("div", { class: "question" }, rich(details.solution))) : null,
    own.answers.length ? whyView(browser, number) : null,
    details ? solutionsView(browser, number, details.generators[browser.wanted.generator]) : make("p", { class: "says" }, "The solutions of this problem are left out of the page."),
  ].filter(Boolean);
}

// Every answer with its votes, and for each way to decide what decided.
function whyView(browser, number) {
  const { own, decision } = browser;
  const answers = own.answers[number];
  if (!answers.length) return make("p", {}, "No sample has an answer.");
  const columns = own.decisions.filter((d) => d.totals.length && (d.decoding === "majority" || d.evaluator === decision.evaluator || (!decision.evaluator && d.evaluator === browser.evaluator)));
  columns.sort((a, b) => (b === decision) - (a === decision)).sort((a, b) => (b.decoding === "majority") - (a.decoding === "majority"));
  const wins = new Set(columns.map((d) => d.winner[number]));
  const byVotes = (a, b) => answers[b][2] - answers[a][2];
  const order = answers.map((_, i) => i).sort((a, b) => wins.has(b) - wins.has(a) || byVotes(a, b)); // a winner is always shown
  const shown = order.slice(0, 12).sort(byVotes);
  const value = (d, i) => {
    const totals = d.totals[number];
    const sum = d.sums[number];
    const win = d.winner[number] === i;
    const text = d.decoding === "majority" ? String(totals[i]) : d.decoding === "weighted" ? `${percent(totals[i] / (sum || 1), 0)}\u00a0%` : d.evaluator === "likelihood" ? totals[i].toFixed(1) : score(totals[i]);
    const share = d.decoding === "best_of_n" ? null : make("span", { class: "share" }, make("i", { style: `width:${(100 * totals[i]) / (sum || 1)}%` }));
    return make("td", { class: win ? "winner" : null }, win && make("span", { title: "wins", role: "img", "aria-label": "wins" }, "★ "), text, share);
  };
  const meaning = { majority: "votes", weighted: "share of the weight", best_of_n: "best score" };
  const more = order.length - shown.length + own.more[number];
  return [make("h3", {}, "Why it won"), make("p", { class: "says sentence" }, whySentence(browser, number), "."),
    make("div", { class: "scroll why" }, make("table", {},
      make("thead", {}, make("tr", {}, make("th", { scope: "col" }, "Answer"), make("th", { scope: "col" }, ""), columns.map((d) => make("th", { scope: "col" }, d.label, make("br"), make("small", {}, meaning[d.decoding]))))),
      make("tbody", {}, shown.map((i) => make("tr", {}, make("th", { scope: "row" }, answerView(answers[i][0])), make("td", {}, verdictMark(answers[i][1])), columns.map((d) => value(d, i))))))),
    more > 0 && make("p", { class: "says" }, `And ${more} more ${more > 1 ? "answers" : "answer"} with fewer votes.`)];
}

function whySentence(browser, number) {
  const { own, decision } = browser;
  const majority = own.decisions.find((d) => d.decoding === "majority");
  const told = (d) => {
    const [i, verdict, total] = [d.winner[number], verdictOf(d.accuracy[number]), d.totals[number]?.[d.winner[number]]];
    if (i < 0) return [`${d.label} chose a solution that is ${verdict}`];
    const by = {
      majority: () => `with ${total} of ${own.samples} votes`,
      weighted: () => `with ${percent(total / (d.sums[number] || 1), 0)}\u00a0% of the weight`,
      best_of_n: () => (d.evaluator === "likelihood" ? "by its log-probability" : `by a score of ${score(total)}`),
      greedy: () => "",
    }[d.decoding]();
    return [`${d.label} chose `, answerView(own.answers[number][i][0]), verdict === "tied" ? " among tied answers " : `, ${verdict}, `, by];
  };
  return decision === majority || !majority ? told(decision) : [told(majority), "; ", told(decision)];
}

function solutionsView(browser, number, held) {
  const { own, evaluator, evaluation } = browser;
  const aggregation = evaluation.adopted[browser.decision.decoding] ?? evaluation.adopted.weighted;
  const ranked = held.samples.map((solution) => ({ solution, value: aggregated(solution.s?.[evaluator], aggregation) }));
  if (evaluator) ranked.sort((a, b) => b.value - a.value);
  const all = [...(held.greedy ? [{ solution: held.greedy, greedy: true }] : []), ...ranked];
  const opened = all.findIndex((one) => !one.greedy);
  const heading = evaluator ? `Solutions, best ${aggregation} of ${evaluator}'s step scores first` : "Solutions";
  return [make("h3", {}, heading), own.evaluators.length ? make("div", { class: "controls" },
    choice("Colour the steps by", own.evaluators.map((name) => [name, name]), evaluator, (value) => browser.colourBy(value)),
    make("span", { class: "scale" }, "0 wrong", make("i", { "aria-hidden": "true" }), "1 right")) : null,
  all.map((one, i) => solutionView(browser, number, one, i === Math.max(opened, 0), aggregation))];
}

function solutionView(browser, number, { solution, value, greedy }, open, aggregation) {
  const { own, evaluator } = browser;
  const answer = solution.a >= 0 ? own.answers[number][solution.a][0] : solution.x ?? null;
  const scores = solution.s?.[evaluator];
  const verdict = [["wrong", "✗ wrong"], ["right", "✓ right"], ["tied", "? undecided"]][solution.v];
  const body = make("div");
  const element = make("details", { class: "solution", open }, make("summary", {},
    make("span", { class: "number" }, greedy ? "greedy" : `#${solution.n}`), make("span", { class: verdict[0] }, verdict[1]),
    make("span", {}, "answer ", answerView(answer)), scores && make("span", { class: "quiet" }, `${aggregation} ${score(value)}`),
    solution.p !== undefined && make("span", { class: "quiet" }, `log-probability ${solution.p.toFixed(1)}`),
    solution.l && make("span", { class: "quiet" }, "cut off by length"),
    scores && make("span", { class: "strip", "aria-hidden": "true" }, scores.slice(0, 40).map((p) => make("i", { style: `background:${tint(p)}`, title: score(p) })))), body);
  const fillIn = () => { if (element.open && !body.childElementCount) fill(body, {}, stepsView(solution, scores, evaluator)); };
  element.addEventListener("toggle", fillIn);
  fillIn();
  return element;
}

// The steps of a solution, each as its nodes. A fence of code may reach over several; the words that announce the final answer in our
// template are a heading, and an answer in bare TeX is a formula.
function stepsShown(texts) {
  let fence = "";
  return texts.map((text) => {
    const [, answer] = (!fence && /^# Answer:?\s+([^]+)/.exec(text)) || [];
    if (answer !== undefined && isTex(answer) && !/\$|\\[([]|\n/.test(answer.trim())) return [make("h4", {}, "Answer"), answerView(answer.trim())];
    const [nodes, open] = markdown(answer ?? text, fence);
    fence = open;
    return [answer !== undefined && make("h4", {}, "Answer"), showAll(nodes)];
  });
}

function stepsView(solution, scores, evaluator) {
  const fits = scores && solution.m;
  const others = Object.entries(solution.s ?? {}).filter(([name]) => name !== evaluator);
  const steps = stepsShown(solution.t).map((shown, i) => {
    const p = fits ? scores[i] : undefined;
    const rest = others.map(([name, values]) => `${name} ${score(values[i] ?? 0)}`).join(", ");
    const label = p === undefined ? undefined : `step ${i + 1}: ${evaluator} ${p}${rest ? `; ${rest}` : ""}`;
    return make("li", { style: p === undefined ? null : `background:${tint(p, p < 0.5 ? 30 : 12)};border-left-color:${tint(p)}` },
      make("div", { class: "prose" }, shown), make("output", { title: label, tabindex: label ? 0 : null, "aria-label": label }, p === undefined ? "" : score(p)));
  });
  if (fits && scores.length > solution.t.length) {
    steps.push(make("li", { style: `border-left-color:${tint(0)}` }, make("span", { class: "quiet" }, "No final answer."), make("output", {}, score(scores[scores.length - 1]))));
  }
  const list = make("ol", { class: "steps" }, steps.length ? steps : make("li", {}, make("span", { class: "quiet" }, "Empty.")));
  if (!scores || fits) return [list];
  return [make("p", { class: "says", style: "margin:.6rem .8rem" }, `Its ${scores.length} scores belong to steps that were cut in another way than can be told from the text: ${scores.map(score).join(", ")}.`), list];
}
