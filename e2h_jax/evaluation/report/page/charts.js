// Charts as inline SVG: lines with bands, grouped bars, mirrored histograms, reliability. All from plain numbers.

const tooltip = () => document.getElementById("tooltip");

function showTooltip(event, title, rows) {
  const box = tooltip();
  box.replaceChildren(make("b", {}, title), ...rows.map(([name, value, colour]) =>
    make("div", {}, make("span", {}, colour && make("span", { style: `color:${colour}` }, "■ "), name), make("span", {}, value))));
  box.hidden = false;
  const { width, height } = box.getBoundingClientRect();
  box.style.left = `${Math.max(4, Math.min(event.clientX + 14, innerWidth - width - 8))}px`;
  box.style.top = `${Math.max(4, event.clientY + 16 + height > innerHeight ? event.clientY - height - 12 : event.clientY + 16)}px`;
}

const hideTooltip = () => { tooltip().hidden = true; };

const DASHES = { solid: null, dashed: "6 4", dotted: "1.5 4", paper: "7 3 1.5 3" };

// One panel: axes, and the two functions from values to places.
function panel({ width = 360, height = 230, x, y, label, xLabel }) {
  const left = 12 + 6.2 * Math.max(2, ...y.ticks.map((value) => y.format(value).length)); // room for the labels
  const box = { left, right: width - 14, top: 10, bottom: height - (xLabel ? 36 : 22) };
  const transform = x.log ? Math.log2 : (value) => value;
  const [low, high] = x.domain.map(transform);
  const atX = (value) => box.left + ((transform(value) - low) / (high - low || 1)) * (box.right - box.left);
  const atY = (value) => box.bottom - ((value - y.domain[0]) / (y.domain[1] - y.domain[0] || 1)) * (box.bottom - box.top);
  const svg = draw("svg", { class: "chart", viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label });
  for (const value of y.ticks) {
    svg.append(draw("line", { class: "grid", x1: box.left, x2: box.right, y1: atY(value), y2: atY(value) }),
      draw("text", { x: box.left - 6, y: atY(value) + 4, "text-anchor": "end" }, y.format(value)));
  }
  for (const value of x.ticks) svg.append(draw("text", { x: atX(value), y: box.bottom + 15, "text-anchor": "middle" }, x.format(value)));
  if (xLabel) svg.append(draw("text", { x: (box.left + box.right) / 2, y: height - 3, "text-anchor": "middle" }, xLabel));
  return { svg, box, atX, atY };
}

const path = (points) => points.map(([x, y], i) => `${i ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(1)}`).join("");

// series: [{name, colour, dash, points: [[x, y, low, high]]}]; low and high may be missing. y.format also writes the tooltip.
function lines({ series, x, y, label, xLabel, width, height, tip = y.format }) {
  const { svg, box, atX, atY } = panel({ x, y, label, xLabel, width, height });
  const drawn = series.filter((one) => one.points.length);
  for (const one of drawn) {
    const band = one.points.filter((point) => point.length > 2 && point[2] !== null);
    if (band.length > 1) {
      const upper = band.map((point) => [atX(point[0]), atY(point[3])]);
      const lower = band.map((point) => [atX(point[0]), atY(point[2])]).reverse();
      svg.append(draw("path", { d: `${path([...upper, ...lower])}Z`, style: `fill:${one.colour};opacity:.1` }));
    }
  }
  for (const one of drawn) {
    let run = []; // a value that is not finite leaves a gap
    const runs = [run];
    for (const [px, py] of one.points) {
      if (py === null) runs.push((run = []));
      else run.push([atX(px), atY(py)]);
    }
    svg.append(draw("path", {
      d: runs.filter((r) => r.length).map(path).join(""), fill: "none", "stroke-dasharray": DASHES[one.dash ?? "solid"],
      "stroke-linejoin": "round", "stroke-linecap": "round", style: `stroke:${one.colour};stroke-width:${one.thin ? 1.3 : 1.9}`,
    }));
    if (one.points.length <= 12 && !one.bare) {
      for (const r of runs) for (const [px, py] of r) svg.append(draw("circle", { cx: px, cy: py, r: 2.4, style: `fill:${one.colour}` }));
    }
  }
  const cursor = draw("line", { class: "cursor", y1: box.top, y2: box.bottom, visibility: "hidden" });
  svg.append(cursor);
  const places = [...new Set(drawn.flatMap((one) => one.points.map((point) => point[0])))].sort((a, b) => a - b);
  svg.addEventListener("pointermove", (event) => {
    if (!places.length) return;
    const area = svg.getBoundingClientRect();
    const at = ((event.clientX - area.left) / area.width) * svg.viewBox.baseVal.width;
    const nearest = places.reduce((a, b) => (Math.abs(atX(b) - at) < Math.abs(atX(a) - at) ? b : a));
    fill(cursor, { x1: atX(nearest), x2: atX(nearest), visibility: "visible" }, []);
    const rows = drawn.flatMap((one) => {
      const point = one.points.find((p) => p[0] === nearest);
      if (!point || point[1] === null) return [];
      const interval = point[2] !== undefined && point[2] !== null ? ` [${tip(point[2])}, ${tip(point[3])}]` : "";
      return [[one.name, tip(point[1]) + interval, one.colour, point[1]]];
    });
    rows.sort((a, b) => b[3] - a[3]);
    showTooltip(event, `${xLabel ?? "step"} ${x.format(nearest)}`, rows);
  });
  svg.addEventListener("pointerleave", () => { cursor.setAttribute("visibility", "hidden"); hideTooltip(); });
  return svg;
}

// A long label in two lines: "Intermediate" and "Algebra".
function twoLines(label) {
  const words = label.split(" ");
  if (label.length < 12 || words.length < 2) return [label];
  const cut = words.findIndex((_, i) => words.slice(0, i + 1).join(" ").length >= label.length / 2);
  return [words.slice(0, Math.max(1, cut)).join(" "), words.slice(Math.max(1, cut)).join(" ")];
}

// groups: labels along x; series: [{name, colour, hatch, values: [{value, low, high} or null]}], shares from 0 to 1.
function bars({ groups, series, label }) {
  const named = Math.max(...groups.map((group) => Math.max(...group.split(" ").map((word) => word.length)))) * 6.5 + 12;
  const width = Math.max(360, Math.min(1160, groups.length * Math.max(named, series.length * 15 + 26) + 50));
  const y = { domain: [0, 1], ticks: [0, 0.25, 0.5, 0.75, 1], format: (value) => percent(value, 0) };
  const { svg, box, atY } = panel({ width, height: 275, x: { domain: [0, 1], ticks: [], format: String }, y, label, xLabel: " " });
  svg.style.width = `${width}px`; // drawn at its size: its text is as large as that of the other charts
  svg.style.maxWidth = "none";
  const slot = (box.right - box.left) / groups.length;
  const thick = Math.min(22, (slot - 14) / Math.max(1, series.length));
  groups.forEach((group, g) => {
    const start = box.left + slot * g + (slot - thick * series.length) / 2;
    twoLines(group).forEach((line, i) => svg.append(draw("text", { x: box.left + slot * (g + 0.5), y: box.bottom + 15 + 13 * i, "text-anchor": "middle" }, line)));
    series.forEach((one, s) => {
      const found = one.values[g];
      if (!found || found.value === null) return;
      const middle = start + thick * (s + 0.5);
      const bar = draw("g", {
        onpointermove: (event) => showTooltip(event, `${group}, ${found.problems} problems`, [[one.name, `${percent(found.value)} ${between([found.low, found.high])}`, one.colour]]),
        onpointerleave: hideTooltip,
      },
      draw("rect", { x: start + thick * s, y: box.top, width: thick, height: box.bottom - box.top, style: "fill:transparent" }),
      draw("rect", { x: start + thick * s + 1, y: atY(found.value), width: Math.max(1, thick - 2), height: Math.max(0.5, box.bottom - atY(found.value)), style: `fill:${one.colour};opacity:${one.pale ? 0.45 : 0.85}` }),
      draw("line", { x1: middle, x2: middle, y1: atY(found.low), y2: atY(found.high), style: "stroke:var(--ink);stroke-width:1;opacity:.7" }));
      svg.append(bar);
    });
  });
  return svg;
}

// Right solutions above the line, wrong ones below it: the sides tell them apart where colours do not.
function histogram({ right, wrong, label }) {
  const sums = [right, wrong].map((counts) => counts.reduce((a, b) => a + b, 0));
  const shares = [right.map((c) => c / (sums[0] || 1)), wrong.map((c) => c / (sums[1] || 1))];
  const most = Math.ceil(Math.max(...shares.flat(), 0.05) * 10) / 10;
  const y = { domain: [-most, most], ticks: [-most, -most / 2, 0, most / 2, most], format: (value) => `${percent(Math.abs(value), 0)}%` };
  const x = { domain: [0, 1], ticks: [0, 0.5, 1], format: (value) => String(value) };
  const { svg, box, atX, atY } = panel({ x, y, label, xLabel: "score", width: 270, height: 220 });
  right.forEach((_, bin) => {
    const left = atX(bin / right.length) + 0.6;
    const width = atX(1 / right.length) - atX(0) - 1.2;
    const [up, down] = [atY(shares[0][bin]), atY(-shares[1][bin])];
    svg.append(draw("g", {
      onpointermove: (event) => showTooltip(event, `score ${(bin / right.length).toFixed(2)} to ${((bin + 1) / right.length).toFixed(2)}`,
        [["right", `${right[bin].toLocaleString("en")} (${percent(shares[0][bin])} %)`, "var(--high)"], ["wrong", `${wrong[bin].toLocaleString("en")} (${percent(shares[1][bin])} %)`, "var(--low)"]]),
      onpointerleave: hideTooltip,
    },
    draw("rect", { x: left, y: box.top, width, height: box.bottom - box.top, style: "fill:transparent" }),
    draw("rect", { x: left, y: up, width, height: atY(0) - up, style: "fill:var(--high)" }),
    draw("rect", { x: left, y: atY(0), width, height: down - atY(0), style: "fill:var(--low)" })));
  });
  svg.append(draw("text", { x: (box.left + box.right) / 2, y: box.top + 12, "text-anchor": "middle" }, `right (${sums[0].toLocaleString("en")})`),
    draw("text", { x: (box.left + box.right) / 2, y: box.bottom - 5, "text-anchor": "middle" }, `wrong (${sums[1].toLocaleString("en")})`));
  return svg;
}

// points: [mean score, share right, count]; on the diagonal, a score is what it says.
function reliability({ points, colour, label }) {
  const axis = { domain: [0, 1], ticks: [0, 0.5, 1], format: (value) => String(value) };
  const { svg, atX, atY } = panel({ x: axis, y: { ...axis, format: (value) => percent(value, 0) }, label, xLabel: "mean score", width: 270, height: 220 });
  svg.append(draw("line", { class: "cursor", x1: atX(0), y1: atY(0), x2: atX(1), y2: atY(1) }),
    draw("path", { d: path(points.map(([px, py]) => [atX(px), atY(py)])), fill: "none", style: `stroke:${colour};stroke-width:1.9` }));
  const most = Math.max(...points.map((point) => point[2]));
  for (const [px, py, count] of points) {
    svg.append(draw("circle", {
      cx: atX(px), cy: atY(py), r: 2.5 + 4.5 * Math.sqrt(count / most), style: `fill:${colour};opacity:.85`,
      onpointermove: (event) => showTooltip(event, `${count.toLocaleString("en")} scores, ${score(px)} on average`, [["are right", `${percent(py)} %`, colour]]),
      onpointerleave: hideTooltip,
    }));
  }
  return svg;
}

// A dot with its interval, to stand in a table's cell.
function whisker(statistic, low, high, zero = null) {
  if (!statistic.ci95) return "";
  const [width, height] = [150, 16];
  const at = (value) => 5 + ((value - low) / (high - low || 1)) * (width - 10);
  const value = statistic.accuracy ?? statistic.difference;
  return draw("svg", { width, height, viewBox: `0 0 ${width} ${height}`, "aria-hidden": "true" },
    draw("line", { class: "grid", x1: 0, x2: width, y1: 8, y2: 8 }),
    zero !== null && draw("line", { class: "cursor", x1: at(zero), x2: at(zero), y1: 0, y2: height }),
    draw("line", { x1: at(statistic.ci95[0]), x2: at(statistic.ci95[1]), y1: 8, y2: 8, style: "stroke:var(--link);stroke-width:3;opacity:.55" }),
    draw("circle", { cx: at(value), cy: 8, r: 4, style: "fill:var(--link)" }));
}

// The dots of several runs beside each other, from 0 to 1; a run that has none is null.
function dots(statistics, colours) {
  const [width, height] = [220, 20];
  const at = (value) => 5 + value * (width - 10);
  return draw("svg", { width, height, viewBox: `0 0 ${width} ${height}`, "aria-hidden": "true" },
    draw("line", { class: "grid", x1: 0, x2: width, y1: 10, y2: 10 }),
    statistics.map((statistic, i) => {
      if (!statistic?.ci95) return null;
      const y = 10 + Math.min(3, 14 / statistics.length) * (i - (statistics.length - 1) / 2); // apart, where they lie at the same place
      return draw("g", {}, draw("line", { x1: at(statistic.ci95[0]), x2: at(statistic.ci95[1]), y1: y, y2: y, style: `stroke:${colours[i]};stroke-width:2;opacity:.5` }),
        draw("circle", { cx: at(statistic.accuracy), cy: y, r: 3.2, style: `fill:${colours[i]}` }));
    }));
}

const captioned = (title, says, chart) => make("figure", {}, make("figcaption", {}, title, says && make("span", {}, says)), chart);

// A legend whose entries switch their series on and off. entries: [{key, name, colour, dash}]; hidden: a Set of keys.
function legend(entries, hidden, changed) {
  return make("ul", { class: "legend" }, entries.map(({ key, name, colour, dash, square }) =>
    make("li", {}, make("button", {
      type: "button", "aria-pressed": String(!hidden.has(key)), title: "Show or hide",
      onclick: () => { if (hidden.has(key)) hidden.delete(key); else hidden.add(key); changed(); },
    }, draw("svg", { width: 24, height: 10, "aria-hidden": "true" }, square
      ? draw("rect", { x: 6, y: 0, width: 12, height: 10, style: `fill:${colour};opacity:${square}` })
      : draw("line", { x1: 1, x2: 23, y1: 5, y2: 5, "stroke-dasharray": DASHES[dash ?? "solid"], style: `stroke:${colour};stroke-width:2.4` })), name))));
}

// The numbers behind a chart, for those who cannot see it or want them.
const numbers = (header, rows, title = "The numbers") => make("details", {}, make("summary", {}, title),
  make("div", { class: "scroll" }, make("table", {},
    make("thead", {}, make("tr", {}, header.map((cell) => make("th", { scope: "col" }, cell)))),
    make("tbody", {}, rows.map(([first, ...rest]) => make("tr", {}, make("th", { scope: "row" }, first), rest.map((cell) => make("td", {}, cell))))))));
