// Curves as SVG. What all charts share (axis, zoom, the position pointed at) is in `view`, which page.js changes.

const SVG = "http://www.w3.org/2000/svg";
const AXIS_NAMES = { step: "step", tokens: "tokens", seconds: "time in training" };

function svg(name, attributes, ...children) {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

function trim(value, digits) {
  return Number(value.toPrecision(digits)).toString();
}

/** A number in few characters: 12,000 is 12k. */
function short(value, digits = 4) {
  const magnitude = Math.abs(value);
  for (const [size, letter] of [[1e12, "T"], [1e9, "B"], [1e6, "M"], [1e3, "k"]]) {
    if (magnitude >= size) return trim(value / size, digits) + letter;
  }
  if (magnitude > 0 && magnitude < 1e-4) return Number(value.toPrecision(digits)).toExponential();
  return trim(value, digits);
}

/** A measured value, to be read and not only to be compared. */
function exact(value) {
  const isLarge = Math.abs(value) >= 1e3 && Math.abs(value) < 1e7;
  return isLarge ? value.toLocaleString("en", { maximumFractionDigits: 0 }) : short(value, 5);
}

function duration(seconds, digits = 3) {
  for (const [size, unit] of [[86400, "d"], [3600, "h"], [60, "min"]]) {
    if (seconds >= 1.5 * size) return trim(seconds / size, digits) + " " + unit;
  }
  return trim(seconds, digits) + " s";
}

function atAxis(axis, value, digits) {
  return axis === "seconds" ? duration(value, digits) : axis === "step" && !digits ? value.toLocaleString("en") : short(value, digits);
}

/** Round values in [low, high], about `count` of them; times fall on whole minutes, hours and days. */
function linearTicks(low, high, count, isTime) {
  const rough = (high - low) / count;
  const unit = isTime ? [86400, 3600, 60, 1].find((size) => rough >= size / 2) ?? 1 : 1;
  const power = 10 ** Math.floor(Math.log10(rough / unit));
  const sizes = isTime && power === 10 && unit < 3600 ? [1, 1.5, 3, 6] : [1, 2, 5, 10];
  const step = unit * power * sizes.find((size) => size * power * unit >= rough * 0.85);
  const ticks = [];
  for (let index = Math.ceil(low / step - 1e-9); index * step <= high + step * 1e-9; index++) ticks.push(index * step);
  return ticks;
}

function logTicks(low, high, count) {
  const decades = Math.log10(high / low);
  if (decades < 0.8) return linearTicks(low, high, count, false).filter((tick) => tick > 0);
  const multiples = decades > count ? [1] : decades > count / 2.5 ? [1, 3] : [1, 2, 5];
  const every = Math.max(1, Math.ceil(decades / count));
  const ticks = [];
  for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power++) {
    if (power % every) continue;
    for (const multiple of multiples) {
      const tick = multiple * 10 ** power;
      if (tick >= low * 0.999 && tick <= high * 1.001) ticks.push(tick);
    }
  }
  return ticks;
}

/** Maps [low, high] to [from, to]. */
function scale(low, high, from, to, isLog) {
  const f = isLog ? Math.log : (value) => value;
  const a = f(low), b = f(high);
  const map = (value) => from + ((f(value) - a) / (b - a)) * (to - from);
  map.back = (pixel) => {
    const value = a + ((pixel - from) / (to - from)) * (b - a);
    return isLog ? Math.exp(value) : value;
  };
  return map;
}

/** Exponential moving average without a bias towards the first value. */
function smoothed(values, decay) {
  let total = 0, weight = 0;
  return values.map((value) => {
    total = decay * total + value;
    weight = decay * weight + 1;
    return total / weight;
  });
}

class Chart {
  constructor(spec, runs, view) {
    Object.assign(this, { spec, runs, view, isLog: false });
    this.figure = document.createElement("figure");
    this.figure.dataset.chart = spec.name;
    const caption = this.figure.appendChild(document.createElement("figcaption"));
    const title = caption.appendChild(document.createElement("span"));
    title.append(Object.assign(document.createElement("b"), { textContent: spec.title }));
    title.append(Object.assign(document.createElement("span"), { className: "unit", textContent: spec.unit }));
    const log = Object.assign(document.createElement("button"), { type: "button", textContent: "log y", title: "Logarithmic vertical axis" });
    log.setAttribute("aria-pressed", "false");
    log.addEventListener("click", () => {
      this.isLog = !this.isLog;
      log.setAttribute("aria-pressed", this.isLog);
      this.draw();
    });
    caption.append(log);
    if (spec.figures.length > 1) this.figure.append(this.key());
    this.plot = svg("svg", { class: "plot", role: "img", tabindex: 0, "aria-label": `${spec.title}, ${spec.unit}` });
    this.figure.append(this.plot);
    this.listen();
  }

  key() {
    const key = Object.assign(document.createElement("p"), { className: "key" });
    const entries = [["", "training"], [" held", "held out"]];
    for (const [kind, text] of entries) {
      const line = svg("svg", { viewBox: "0 0 26 11", style: "--run: currentColor" }, svg("path", { class: "curve" + kind, d: "M1 6H25" }));
      if (kind) line.append(svg("circle", { class: "mark", cx: 13, cy: 6, r: 2.6 }));
      const entry = document.createElement("span");
      entry.append(line, text);
      key.append(entry);
    }
    return key;
  }

  /** The curves to draw: of the runs that are shown, within the range that is shown. */
  curves() {
    const { axis, logX, range, smoothing } = this.view;
    const found = [];
    for (const run of this.runs) {
      if (run.hidden) continue;
      for (const figure of this.spec.figures) {
        const curve = run.curves[figure];
        if (!curve) continue;
        const held = this.view.heldOut.has(figure);
        const smooth = this.spec.noisy && !held && smoothing > 0 ? smoothed(curve.mean, smoothing) : null;
        const low = curve.low ?? curve.mean, high = curve.high ?? curve.mean;
        const points = [];
        curve[axis].forEach((x, index) => {
          if ((logX && x <= 0) || (this.isLog && low[index] <= 0)) return;
          points.push({ x, index, y: curve.mean[index], low: low[index], high: high[index], line: smooth ? smooth[index] : curve.mean[index] });
        });
        const within = range ? points.filter((p) => p.x >= range[0] && p.x <= range[1]) : points;
        if (points.length) found.push({ run, figure, held, points, within, isBand: Boolean(curve.low), isSmooth: Boolean(smooth), behind: curve.behind });
      }
    }
    return found;
  }

  draw() {
    const width = this.plot.clientWidth, height = this.plot.clientHeight;
    if (!width) return;
    this.plot.setAttribute("viewBox", `0 0 ${width} ${height}`);
    const curves = (this.shown = this.curves());
    this.plot.replaceChildren();
    const within = curves.flatMap((curve) => curve.within);
    if (!within.length) {
      this.x = null;
      this.plot.append(svg("text", { x: width / 2, y: height / 2, "text-anchor": "middle" }, "nothing in this range"));
      return;
    }
    const [bottom, top] = this.bounds(within);
    const yTicks = this.isLog ? logTicks(bottom, top, height / 45) : linearTicks(bottom, top, height / 45, false);
    const labels = yTicks.map((tick) => short(tick));
    const left = 14 + 6.4 * Math.max(...labels.map((label) => label.length));
    this.frame = { left, right: width - 8, top: 6, bottom: height - 22 };
    this.y = scale(bottom, top, this.frame.bottom, this.frame.top, this.isLog);
    this.setX();
    this.grid(yTicks, labels);
    const clip = `clip-${this.spec.name}`;
    const area = { x: left - 4, y: 0, width: this.frame.right - left + 8, height: height - 20 };
    this.plot.append(svg("clipPath", { id: clip }, svg("rect", area)));
    const layer = this.plot.appendChild(svg("g", { "clip-path": `url(#${clip})` }));
    for (const curve of curves) this.trace(layer, curve);
    this.overlay = this.plot.appendChild(svg("g", {}));
    this.point();
  }

  bounds(points) {
    let low = Infinity, high = -Infinity;
    for (const point of points) {
      low = Math.min(low, point.low, point.line);
      high = Math.max(high, point.high, point.line);
    }
    if (this.isLog) return low === high ? [low / 1.5, high * 1.5] : [low / (high / low) ** 0.04, high * (high / low) ** 0.04];
    const room = high === low ? Math.abs(high) * 0.1 || 1 : (high - low) * 0.05;
    return [low >= 0 && low < room * 3 ? 0 : low - room, high + room];
  }

  setX() {
    const { axis, logX } = this.view;
    const [from, to] = this.view.extent();
    const count = (this.frame.right - this.frame.left) / 85;
    this.x = scale(from, to, this.frame.left, this.frame.right, logX);
    this.xTicks = logX ? logTicks(from, to, count) : linearTicks(from, to, count, axis === "seconds");
  }

  grid(yTicks, labels) {
    const { left, right, top, bottom } = this.frame;
    yTicks.forEach((tick, index) => {
      const y = this.y(tick);
      if (y < top - 4 || y > bottom + 1) return;
      this.plot.append(svg("line", { class: "grid", x1: left, x2: right, y1: y, y2: y }));
      this.plot.append(svg("text", { x: left - 6, y: y + 3.5, "text-anchor": "end" }, labels[index]));
    });
    for (const tick of this.xTicks) {
      const x = this.x(tick), label = this.view.axis === "seconds" ? duration(tick) : short(tick);
      const anchor = x > right - 22 ? "end" : x < left + 12 ? "start" : "middle";
      this.plot.append(svg("line", { class: "grid", x1: x, x2: x, y1: bottom, y2: bottom + 4 }));
      this.plot.append(svg("text", { x, y: bottom + 17, "text-anchor": anchor }, label));
    }
  }

  trace(layer, { run, held, points, isBand, isSmooth }) {
    const path = (of) => points.map((p, index) => `${index ? "L" : "M"}${this.x(p.x).toFixed(1)} ${this.y(of(p)).toFixed(1)}`).join("");
    const group = layer.appendChild(svg("g", { style: `--run: ${run.colour}` }));
    if (isBand) {
      const back = [...points].reverse().map((p) => `L${this.x(p.x).toFixed(1)} ${this.y(p.low).toFixed(1)}`).join("");
      group.append(svg("path", { class: "band", d: path((p) => p.high) + back + "Z" }));
    } else if (isSmooth) {
      group.append(svg("path", { class: "curve raw", d: path((p) => p.y) }));
    }
    group.append(svg("path", { class: held ? "curve held" : "curve", d: path((p) => p.line) }));
    if (points.length === 1 || (held && points.length < 80)) {
      for (const p of points) group.append(svg("circle", { class: "mark", cx: this.x(p.x), cy: this.y(p.line), r: 3 }));
    }
  }

  /** The cross at the position that some chart is pointed at, and what each curve has there. */
  point() {
    if (!this.x || !this.overlay) return [];
    this.overlay.replaceChildren();
    const at = this.view.at;
    if (this.dragFrom !== undefined && at !== null) {
      const [a, b] = [this.x(this.dragFrom), this.x(at)].sort((one, other) => one - other);
      this.overlay.append(svg("rect", { class: "drag", x: a, width: b - a, y: this.frame.top, height: this.frame.bottom - this.frame.top }));
    }
    const pixel = at === null ? NaN : this.x(at);
    if (!(pixel >= this.frame.left - 1 && pixel <= this.frame.right + 1)) return [];
    this.overlay.append(svg("line", { class: "cross", x1: pixel, x2: pixel, y1: this.frame.top, y2: this.frame.bottom }));
    const values = [];
    for (const curve of this.shown) {
      const nearest = closest(curve.within, at);
      if (!nearest || (at > curve.points.at(-1).x && Math.abs(this.x(nearest.x) - pixel) > 12)) continue;
      this.overlay.append(svg("circle", { class: "at", style: `--run: ${curve.run.colour}`, cx: this.x(nearest.x), cy: this.y(nearest.line), r: 3.6 }));
      values.push({ ...curve, nearest });
    }
    return values;
  }

  listen() {
    const place = (event) => {
      const box = this.plot.getBoundingClientRect();
      const inside = Math.min(Math.max(event.clientX - box.left, this.frame.left), this.frame.right);
      return this.x.back(inside);
    };
    this.plot.addEventListener("pointermove", (event) => {
      if (this.x) this.view.pointAt(place(event), this, event.clientX, event.clientY);
    });
    this.plot.addEventListener("pointerleave", () => { if (this.dragFrom === undefined) this.view.pointAt(null, this); });
    this.plot.addEventListener("pointerdown", (event) => {
      if (!this.x || event.button) return;
      this.dragFrom = place(event);
      this.plot.setPointerCapture(event.pointerId);
    });
    this.plot.addEventListener("pointerup", (event) => {
      if (this.dragFrom === undefined) return;
      const [a, b] = [this.dragFrom, place(event)].sort((one, other) => one - other);
      this.dragFrom = undefined;
      if (this.x(b) - this.x(a) > 8) this.view.zoom([a, b]);
      else this.point();
    });
    this.plot.addEventListener("pointercancel", () => { this.dragFrom = undefined; this.point(); });
    this.plot.addEventListener("dblclick", () => this.view.zoom(null));
    this.plot.addEventListener("keydown", (event) => {
      const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (!by || !this.x || !this.shown.length) return;
      event.preventDefault();
      const points = this.shown[0].within;
      const index = this.view.at === null ? 0 : points.indexOf(closest(points, this.view.at)) + by;
      const point = points[Math.min(Math.max(index, 0), points.length - 1)];
      const box = this.plot.getBoundingClientRect();
      this.view.pointAt(point.x, this, box.left + this.x(point.x), box.top + 40);
    });
  }
}

/** The point whose x is nearest; points are in order of x. */
function closest(points, x) {
  let low = 0, high = points.length - 1;
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (points[middle].x < x) low = middle; else high = middle;
  }
  return points[high] && Math.abs(points[high].x - x) < Math.abs(points[low].x - x) ? points[high] : points[low];
}
