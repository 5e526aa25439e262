// Training curves: small multiples of every metric, one line a run, with the runs of all workdirs beside each other.

function trainingSection(core) {
  if (!core.training.length) return null;
  const many = new Set(core.training.flatMap((group) => group.runs.map((run) => run.run))).size > 1;
  return make("section", { id: "training" }, make("h2", {}, "Training"),
    make("p", { class: "says" }, "Every metric against optimiser steps (or rounds), one line a run; long curves are drawn as means of neighbouring steps."),
    core.training.map((group) => trainingGroup(core, group, many)));
}

function trainingGroup(core, group, many) {
  const runs = group.runs.map((run, i) => ({ ...run, key: `${run.run} ${run.name}`, shown: many ? `${run.name} · ${run.run}` : run.name }));
  const names = [...new Set(runs.map((run) => run.name))];
  const workdirs = [...new Set(runs.map((run) => run.run))];
  // A stage keeps its colour in every workdir, and a workdir its dashes; with one stage alone, colours tell workdirs apart.
  const looks = runs.map((run) => names.length > 1
    ? { colour: colourOf(names, run.name), dash: ["solid", "dashed", "dotted", "paper"][workdirs.indexOf(run.run) % 4] }
    : { colour: colourOf(workdirs, run.run), dash: "solid" });
  const entries = runs.map((run, i) => ({ key: run.key, name: run.shown, ...looks[i] }));
  const hidden = new Set();
  const body = make("div");
  const metrics = Object.keys(core.metrics).filter((metric) => runs.some((run) => run.curves[metric]));
  const varying = metrics.filter((metric) => new Set(runs.flatMap((run) => run.curves[metric]?.[1] ?? [])).size > 1);
  const constant = metrics.filter((metric) => !varying.includes(metric)).map((metric) => `${core.metrics[metric][0]} ${short(runs.find((run) => run.curves[metric]).curves[metric][1][0])}`);
  const refresh = () => {
    body.replaceChildren(runs.length > 1 ? legend(entries, hidden, refresh) : make("p", { class: "says" }, runs[0].shown),
      make("div", { class: "panels small" }, varying.map((metric) => metricChart(core, metric, runs, entries, hidden))));
  };
  refresh();
  return make("details", { class: "training", open: !group.inside && innerWidth > 860 }, make("summary", {}, make("h3", {}, group.title)), body,
    constant.length ? make("p", { class: "says" }, `Constant: ${constant.join(", ")}.`) : null);
}

function metricChart(core, metric, runs, entries, hidden) {
  const series = runs.flatMap((run, i) => run.curves[metric] && !hidden.has(run.key)
    ? [{ ...entries[i], points: run.curves[metric][0].map((step, j) => [step, run.curves[metric][1][j]]) }] : []);
  const values = series.flatMap((one) => one.points.map((point) => point[1])).filter((value) => value !== null);
  const steps = series.flatMap((one) => one.points.map((point) => point[0]));
  let [low, high] = values.length ? [Math.min(...values), Math.max(...values)] : [0, 1];
  if (low === high) [low, high] = [low - Math.max(1e-9, Math.abs(low) * 0.1), high + Math.max(1e-9, Math.abs(high) * 0.1)];
  const room = (high - low) * 0.06;
  const domain = [low - (low >= 0 ? Math.min(room, low) : room), high + room];
  const last = Math.max(...steps, 1);
  const first = Math.min(...steps, last - 1);
  const x = { domain: [first, last], ticks: ticks(first, last, 4).filter(Number.isInteger), format: (step) => step.toLocaleString("en") };
  const [title, says] = core.metrics[metric];
  const ends = series.map((one) => `${one.name} from ${short(one.points[0][1])} to ${short(one.points[one.points.length - 1][1])}`).join("; ");
  return captioned(title, says, lines({ series, x, y: { domain, ticks: ticks(...domain, 4), format: short }, width: 285, height: 170, label: `${title}: ${ends}` }));
}
