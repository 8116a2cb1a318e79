// The page around the charts: what the runs are, what they were trained with and on, and what they left.

const report = JSON.parse(document.getElementById("report").textContent);
const runs = report.runs;
const at = (id) => document.getElementById(id);

function make(name, properties = {}, ...children) {
  const element = Object.assign(document.createElement(name), properties);
  element.append(...children);
  return element;
}

runs.forEach((run, index) => {
  run.colour = index < 8 ? `var(--run-${index})` : `hsl(${(index * 137.5) % 360} 55% 52%)`;
  run.hidden = false;
});

function dot(run) {
  const mark = make("span", { className: "dot" });
  mark.style.setProperty("--run", run.colour);
  return mark;
}

const said = (value, format = (number) => number.toFixed(4)) => (value === null || value === undefined ? "–" : format(value));
const percent = (value) => (100 * value).toFixed(1) + " %";
const count = (value) => Math.round(value).toLocaleString("en");
const size = (bytes) => (bytes >= 2 ** 30 ? (bytes / 2 ** 30).toFixed(2) + " GiB" : (bytes / 2 ** 20).toFixed(1) + " MiB");

function progress(run) {
  return run.total_steps ? `${count(run.step)} of ${count(run.total_steps)}` : count(run.step);
}

// Summary: tiles for one run, a table for several.

const utilization = runs.some((run) => run.headline.mfu !== null) ? ["mfu", "MFU", "of the vendor's peak"] : ["mfu_measured", "MFU", "of a matrix product"];
const HEADLINES = [
  ["best_eval_loss", "Held-out loss", said, (run) => run.headline.best_step === null ? "" : `best, at step ${count(run.headline.best_step)}`, "least"],
  ["bits_per_byte", "Bits per byte", said, () => "held out, last", "least"],
  ["loss", "Training loss", said, () => "last logged", "least"],
  ["parameters", "Parameters", (value) => said(value, short), (run) => said(run.headline.parameters, count)],
  ["tokens", "Tokens", (value) => said(value, short), (run) => `step ${progress(run)}`],
  ["seconds", "Time in training", (value) => said(value, duration), () => "updates alone"],
  ["tokens_per_second", "Tokens a second", (value) => said(value, count), () => "median", "most"],
  [utilization[0], utilization[1], (value) => said(value, percent), () => `median, ${utilization[2]}`, "most"],
  ["memory_bytes", "Peak memory", (value) => said(value, size), () => ""],
];

function tiles(run) {
  const list = make("dl", { className: "tiles" });
  for (const [key, label, format, more] of HEADLINES) {
    list.append(make("div", { className: "tile" }, make("dt", { textContent: label }),
      make("dd", {}, format(run.headline[key]), make("small", { textContent: more(run) }))));
  }
  return list;
}

function comparison() {
  const head = make("tr", {}, make("th", { textContent: "Run" }), make("th", { textContent: "Step", className: "numeric" }));
  for (const [, label] of HEADLINES) head.append(make("th", { textContent: label, className: "numeric" }));
  const body = make("tbody");
  for (const run of runs) {
    const row = make("tr", {}, make("td", { className: "name" }, dot(run), " " + run.name), make("td", { className: "numeric", textContent: progress(run) }));
    for (const [key, , format, , want] of HEADLINES) {
      const values = runs.map((other) => other.headline[key]).filter((value) => value !== null);
      const best = want && new Set(values).size > 1 && run.headline[key] === Math[want === "least" ? "min" : "max"](...values);
      row.append(make("td", { className: best ? "numeric best" : "numeric", textContent: format(run.headline[key]) }));
    }
    body.append(row);
  }
  return make("div", { className: "scroll" }, make("table", { className: "plain" }, make("thead", {}, head), body));
}

// Charts, and what they show.

const view = {
  axis: "step", logX: false, range: null, smoothing: 0.6, at: null, heldOut: new Set(report.held_out),
  /** The range that all charts span: what is zoomed to, else all that the runs shown have. */
  extent() {
    if (view.range) return view.range;
    let low = Infinity, high = -Infinity;
    for (const run of runs) {
      if (run.hidden) continue;
      for (const curve of Object.values(run.curves)) {
        const own = view.logX ? curve[view.axis].filter((x) => x > 0) : curve[view.axis];
        if (!own.length) continue;
        low = Math.min(low, own[0]);
        high = Math.max(high, own.at(-1));
      }
    }
    if (!view.logX && low < high / 20) low = 0;
    return low < high ? [low, high] : view.logX ? [low / 2, low * 2] : [low - 1, low + 1];
  },
  zoom(range) {
    view.range = range;
    at("whole").hidden = range === null;
    redraw();
  },
  pointAt(x, chart, left, top) {
    view.at = x;
    const values = charts.map((other) => [other, other.point()]).find(([other]) => other === chart)[1];
    tip(values, left, top);
  },
};
const charts = report.charts.map((spec) => new Chart(spec, runs, view));

function redraw() {
  view.at = null;
  at("tip").hidden = true;
  for (const chart of charts) chart.draw();
}

function tip(values, left, top) {
  const box = at("tip");
  box.hidden = !values.length;
  if (!values.length) return;
  const table = make("table");
  for (const { run, held, nearest, isSmooth, behind } of values) {
    const smooth = isSmooth && behind === 1 ? `(smoothed ${exact(nearest.line)})` : "";
    const range = behind > 1 ? `mean; ${exact(nearest.low)} to ${exact(nearest.high)}` : smooth;
    table.append(make("tr", {}, make("td", {}, dot(run)), make("td", { textContent: runs.length > 1 ? run.name : "" }),
      make("td", { className: "number", textContent: exact(nearest.y) }), make("td", { className: "hint", textContent: held ? "held out" : range }),
      make("td", { className: "hint", textContent: atAxis(view.axis, nearest.x) })));
  }
  box.replaceChildren(make("div", { className: "hint", textContent: `${AXIS_NAMES[view.axis]} ${atAxis(view.axis, view.axis === "seconds" ? view.at : Math.round(view.at))}` }), table);
  const width = box.offsetWidth, height = box.offsetHeight;
  box.style.left = Math.max(8, left + 16 + width > innerWidth - 8 ? left - width - 16 : left + 16) + "px";
  box.style.top = Math.max(8, Math.min(top + 14, innerHeight - height - 8)) + "px";
}

function choose(axis) {
  view.axis = axis;
  for (const button of at("axis").children) button.setAttribute("aria-pressed", button.dataset.axis === axis);
  view.zoom(null);
}

function tools() {
  if (runs.length > 1) {
    for (const run of runs) {
      const chip = make("button", { type: "button", title: run.path }, dot(run), run.name);
      chip.setAttribute("aria-pressed", "true");
      chip.addEventListener("click", () => {
        run.hidden = !run.hidden;
        chip.setAttribute("aria-pressed", !run.hidden);
        redraw();
      });
      at("chips").append(chip);
    }
  }
  at("axis").addEventListener("click", (event) => { if (event.target.dataset.axis) choose(event.target.dataset.axis); });
  at("log-x").addEventListener("click", (event) => {
    view.logX = !view.logX;
    event.target.setAttribute("aria-pressed", view.logX);
    view.zoom(null);
  });
  at("smoothing").addEventListener("input", (event) => {
    view.smoothing = Number(event.target.value);
    at("smoothing-value").textContent = view.smoothing.toFixed(2);
    redraw();
  });
  at("whole").addEventListener("click", () => view.zoom(null));
  const themes = ["light dark", "light", "dark"], names = { "light dark": "theme: system", light: "theme: light", dark: "theme: dark" };
  let theme = 0;
  const dress = () => {
    document.documentElement.style.colorScheme = themes[theme];
    at("theme").textContent = names[themes[theme]];
  };
  at("theme").addEventListener("click", () => { theme = (theme + 1) % 3; dress(); });
  dress();
}

function hint() {
  if (!charts.length) return "No figures yet: the run has logged nothing.";
  const most = Math.max(...runs.flatMap((run) => Object.values(run.curves).map((curve) => curve.behind)));
  const crowd = most > 1 ? `Long curves are thinned: a point is the mean of up to ${count(most)} logged values, and the shade behind spans their least and greatest. ` : "";
  return crowd + "Point at a curve for its values, drag to zoom, double-click for the whole range. Time is that of training itself, from tokens and tokens a second.";
}

// Everything else.

function fill(id, ...children) {
  at(id).hidden = !children.length;
  at(id).querySelector(".body").replaceChildren(...children);
}

function facts(pairs) {
  const list = make("dl", { className: "facts" });
  for (const [label, text] of pairs) {
    const isHash = /^[0-9a-f]{64}$/.test(text);
    list.append(make("dt", { textContent: label }), make("dd", { textContent: text, className: isHash ? "hash" : "" }));
  }
  return list;
}

function heading(run) {
  return runs.length > 1 ? [make("h3", {}, dot(run), " " + run.name)] : [];
}

function factsByRun(id, key) {
  const having = runs.filter((run) => run[key].length);
  fill(id, ...having.map((run) => make("div", {}, ...heading(run), facts(run[key]))));
}

function samples() {
  const steps = [...new Set(runs.flatMap((run) => run.samples.map((sample) => sample.step)))].sort((a, b) => a - b);
  if (!steps.length) return;
  const slider = at("sample-step");
  slider.max = steps.length - 1;
  slider.value = steps.length - 1;
  const show = () => {
    const step = steps[slider.value];
    at("sample-value").textContent = `step ${count(step)}`;
    const columns = [];
    for (const run of runs) {
      const sample = run.samples.filter((one) => one.step <= step).at(-1);
      if (!run.samples.length) continue;
      const label = sample && sample.step !== step ? ` (its step ${count(sample.step)})` : "";
      columns.push(make("div", {}, ...heading(run).map((h) => (h.append(label), h)),
        make("pre", { textContent: sample ? sample.text + (sample.cut ? "\n[…]" : "") : "nothing yet" })));
    }
    fill("samples", ...columns);
  };
  slider.addEventListener("input", show);
  show();
}

function config() {
  const having = runs.filter((run) => Object.keys(run.config).length);
  if (!having.length) return;
  const keys = [...new Set(having.flatMap((run) => Object.keys(run.config)))];
  const differs = (key) => new Set(having.map((run) => run.config[key] ?? "null")).size > 1;
  const value = (run, key) => ({ undefined: "–", null: "–" })[run.config[key]] ?? run.config[key];
  const table = (own, section) => {
    const head = having.length > 1 ? [make("thead", {}, make("tr", {}, make("th"), ...having.map((run) => make("th", {}, dot(run), " " + run.name))))] : [];
    const rows = own.map((key) => make("tr", {}, make("td", { className: "name", textContent: section ? key.slice(section.length + 1) : key }),
      ...having.map((run) => make("td", {}, make("code", { textContent: value(run, key) })))));
    return make("table", { className: "plain" }, ...head, make("tbody", {}, ...rows));
  };
  const show = () => {
    if (having.length > 1) {
      const own = at("differing").checked ? keys.filter(differs) : keys;
      fill("config", own.length ? make("div", { className: "scroll" }, table(own)) : make("p", { className: "hint", textContent: "All keys are the same." }));
      return;
    }
    const sections = [...new Set(keys.map((key) => key.slice(0, key.lastIndexOf("."))))];
    fill("config", make("div", { className: "sections" }, ...sections.map((section) =>
      make("div", {}, make("h3", { textContent: section }), table(keys.filter((key) => key.slice(0, key.lastIndexOf(".")) === section), section)))));
  };
  at("differing-label").hidden = having.length < 2;
  at("differing").addEventListener("change", show);
  show();
}

function checkpointRow(run, one) {
  const tags = [];
  if (one.latest) tags.push(make("span", { className: "tag", textContent: "latest" }));
  if (one.best) tags.push(make("span", { className: "tag good", textContent: "best" }));
  const hashes = Object.entries(one.files);
  const main = hashes.find(([name]) => name.startsWith("model")) ?? hashes[0];
  const files = main ? make("details", {}, make("summary", {}, main[0] + " ", make("span", { className: "hash", textContent: main[1].slice(0, 16) + "…" })), facts(hashes)) : "";
  return make("tr", {}, ...(runs.length > 1 ? [make("td", { className: "name" }, dot(run), " " + run.name)] : []),
    make("td", { className: "name" }, one.name, ...tags), make("td", { className: "numeric", textContent: said(one.tokens, count) }),
    make("td", { className: "numeric", textContent: size(one.bytes) }), make("td", { textContent: one.backend ?? "–" }),
    make("td", {}, one.fault ? make("span", { className: "fault", textContent: one.fault }) : files));
}

function checkpoints() {
  const rows = runs.flatMap((run) => run.checkpoints.map((one) => checkpointRow(run, one)));
  if (!rows.length) return;
  const head = make("tr", {}, ...(runs.length > 1 ? [make("th", { textContent: "Run" })] : []), make("th", { textContent: "Checkpoint" }), make("th", { textContent: "Tokens", className: "numeric" }),
    make("th", { textContent: "Size", className: "numeric" }), make("th", { textContent: "Written by" }), make("th", { textContent: "SHA-256" }));
  fill("checkpoints", make("div", { className: "scroll" }, make("table", { className: "plain" }, make("thead", {}, head), make("tbody", {}, ...rows))));
}

/** Figures in words; the harness's "acc,none" and "acc_stderr,none" become one, "none" being that no filter applied. */
function figuresInWords(figures) {
  const words = [];
  for (const [key, value] of Object.entries(figures)) {
    const [metric, filter] = key.split(",");
    if (metric.endsWith("_stderr")) continue;
    const error = figures[[`${metric}_stderr`, ...(filter ? [filter] : [])].join(",")];
    const name = filter && filter !== "none" ? `${metric} (${filter})` : metric;
    const number = typeof value === "number" ? exact(value) : value ?? "–";
    words.push(`${name.replaceAll("_", " ")} ${number}` + (typeof error === "number" ? ` ± ${short(error, 2)}` : ""));
  }
  return words.join("  ·  ");
}

function evaluations() {
  const rows = [];
  for (const run of runs) for (const evaluated of run.evaluations) for (const result of evaluated.results) {
    const settings = Object.entries(result.settings).filter(([, value]) => value !== null).map(([name, value]) => `${name} ${value}`);
    rows.push(make("tr", {}, make("td", { className: "name" }, dot(run), ` ${run.name}`), make("td", { className: "name", textContent: evaluated.checkpoint }),
      make("td", { className: result.kind === "task" ? "name" : "", textContent: result.name }), make("td", { textContent: figuresInWords(result.figures) }), make("td", { className: "hint", textContent: settings.join(", ") })));
  }
  if (!rows.length) return;
  const head = make("tr", {}, ...["Run", "Checkpoint", "Text or task", "Figures", "Settings"].map((textContent) => make("th", { textContent })));
  fill("evaluations", make("div", { className: "scroll" }, make("table", { className: "plain" }, make("thead", {}, head), make("tbody", {}, ...rows))));
}

const notes = runs.flatMap((run) => run.notes.map((note) => make("li", { textContent: runs.length > 1 ? `${run.name}: ${note}` : note })));
at("title").textContent = runs.map((run) => run.name).join(", ");
document.title = `Sconce report: ${at("title").textContent}`;
at("summary").append(runs.length > 1 ? comparison() : tiles(runs[0]));
tools();
at("charts").append(...charts.map((chart) => chart.figure));
at("chart-hint").textContent = hint();
at("tools").hidden = !charts.length;
samples();
config();
factsByRun("data", "data");
factsByRun("hardware", "hardware");
checkpoints();
evaluations();
fill("notes", ...notes);
at("footer").textContent = `Made by Sconce ${report.version} on ${report.made.replace("T", " ")}, from ${runs.map((run) => `${run.path} (${count(run.lines)} lines of figures)`).join(", ")}.`;
choose("step");
new ResizeObserver(redraw).observe(at("charts"));
