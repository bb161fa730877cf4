// Makes the charts of a report zoom and tell values, and its maps tell theirs. What it shows it reads back
// from the pictures that stand in the page; without it they are complete, but still.
"use strict";
(() => {
  const NS = "http://www.w3.org/2000/svg";
  const LEFT = 60, RIGHT = 14, TOP = 12, BOTTOM = 42, NAMES = 118, ROW = 22, MARKS = 8;
  const NARROW = 520; // below it, lines have their names in the legend alone
  const ZOOM = 1.4;

  const make = (name, attributes = {}, text = "") => {
    const element = document.createElementNS(NS, name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    element.textContent = text;
    return element;
  };
  const numbers = (text) => (text || "").split(" ").filter(Boolean).map(Number);
  const clamp = (value, low, high) => Math.min(high, Math.max(low, value));

  // As `number` of axes.py.
  const number = (value) => {
    if (!Number.isFinite(value)) return "–";
    const size = Math.abs(value);
    if (size !== 0 && (size < 1e-3 || size >= 1e7)) {
      const [digits, exponent] = value.toExponential(3).split("e");
      return `${Number(digits)}e${Number(exponent)}`;
    }
    const text = Number(value.toPrecision(5)).toLocaleString("en-US", { maximumFractionDigits: 8 });
    return text.replace("-", "−");
  };

  // As `_steps` and `Axis.ticks` of axes.py.
  const steps = (low, high, count) => {
    const raw = (high - low) / Math.max(1, count);
    if (!(raw > 0) || !Number.isFinite(raw)) return [];
    const power = 10 ** Math.floor(Math.log10(raw));
    const step = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= raw * 0.999);
    const found = [];
    for (let n = Math.ceil(low / step - 1e-9); n <= Math.floor(high / step + 1e-9); n++)
      found.push(Number((n * step).toPrecision(12)));
    return found;
  };
  const ticks = (low, high, log, count) => {
    if (!log) return steps(low, high, count).map((v) => [v, number(v)]);
    const first = Math.ceil(low - 1e-9), last = Math.floor(high + 1e-9), found = [];
    if (high - low >= 2) {
      const every = Math.ceil((last - first + 1) / count);
      for (let d = first; d <= last; d++) if (d % every === 0) found.push([d, number(10 ** d)]);
      return found;
    }
    let values = steps(10 ** low, 10 ** high, 2 * count);
    if (high - low >= 0.7) {
      values = [];
      for (let d = Math.floor(low); d <= Math.ceil(high); d++)
        for (const m of [1, 2, 5]) values.push(m * 10 ** d);
    }
    return values.filter((v) => v > 0).map((v) => [Math.log10(v), number(v)])
      .filter(([at]) => at >= low && at <= high);
  };

  // The commands of a path in the units of the axes: [letter, x, y].
  const parse = (path, log) =>
    [...path.getAttribute("d").matchAll(/([MLZ])([^MLZ]*)/g)].map(([, letter, pair]) => {
      const [x, y] = pair.split(",").map(Number);
      return [letter, x, log ? 10 ** y : y];
    });

  class Chart {
    constructor(figure) {
      this.figure = figure;
      this.svg = figure.querySelector("svg.picture");
      this.plot = this.svg.querySelector("svg.plot");
      this.log = figure.dataset.log === "1";
      const [x0, x1, y0, y1] = numbers(figure.dataset.view);
      this.first = { x: [x0, x1], y: [y0, y1], log: this.log };
      this.series = [...this.plot.querySelectorAll("g.series")].map((group) => this.read(group));
      this.rugs = [...this.svg.querySelectorAll("g.rug")].map((group) => {
        const path = group.querySelector(".ticks");
        return { group, path, name: group.dataset.name, steps: parse(path, false)
          .filter(([letter]) => letter === "M").map(([, x]) => x) };
      });
      this.ends = [...this.svg.querySelectorAll("g.ends > g")].map((group) => ({
        group, series: this.series.find((s) => s.entry === group.dataset.entry && s.names),
      }));
      [this.xLabel, this.yLabel] = [...this.svg.querySelectorAll(".frame > text")].slice(-2)
        .map((text) => text.textContent);
      this.entries = [...figure.querySelectorAll(".legend > li")];
      this.cross = this.svg.appendChild(make("path", { class: "cross" }));
      this.box = this.svg.appendChild(make("rect", { class: "box", width: 0, height: 0 }));
      this.tools();
      this.legend();
      this.listen();
      this.home();
      new ResizeObserver(() => this.draw()).observe(this.svg);
    }

    read(group) {
      const paths = [...group.querySelectorAll(".plane > path")]
        .map((path) => ({ path, points: parse(path, this.log) }));
      for (const { path } of paths) path.parentNode.removeAttribute("transform");
      const kind = ["line", "points", "ghost"].find((name) => group.querySelector(`.${name}`));
      const points = paths.find(({ path }) => path.classList.contains(kind)).points;
      const only = !this.plot.querySelector(".line");
      const marks = group.querySelector(".marks");
      return { group, paths, points, kind, marks, entry: group.dataset.entry, note: group.dataset.note,
        glyph: group.dataset.glyph, marked: marks.getAttribute("d") !== "", shown: true,
        names: kind === "line" || (only && kind === "points") };
    }

    // Buttons above the picture.
    tools() {
      const bar = document.createElement("div");
      bar.className = "tools";
      const add = (text, title, act) => {
        const button = document.createElement("button");
        Object.assign(button, { type: "button", textContent: text, title });
        button.setAttribute("aria-label", title);
        button.addEventListener("click", act);
        return bar.appendChild(button);
      };
      add("+", "zoom in", () => this.zoom(1 / ZOOM));
      add("−", "zoom out", () => this.zoom(ZOOM));
      add("reset", "the view as it was at first", () => this.home());
      add("all", "show all values", () => this.whole());
      if (this.figure.dataset.positive === "1") {
        const button = add("log", "logarithmic axis", () => {
          this.log = !this.log;
          button.setAttribute("aria-pressed", this.log);
          if (this.log === this.first.log) this.home();
          else this.whole();
        });
        button.setAttribute("aria-pressed", this.log);
      }
      add("CSV", "download the values drawn as CSV", () => this.save());
      this.svg.before(bar);
      this.told = document.createElement("output");
      this.told.className = "told";
      this.told.textContent = "\u00a0";
      this.svg.after(this.told);
    }

    // Lines of the legend become switches.
    legend() {
      for (const entry of this.entries) {
        const text = entry.querySelector("span"), button = document.createElement("button");
        button.type = "button";
        button.setAttribute("aria-pressed", "true");
        button.append(...text.childNodes);
        text.replaceWith(button);
        button.addEventListener("click", () => {
          const shown = button.getAttribute("aria-pressed") !== "true";
          button.setAttribute("aria-pressed", shown);
          for (const s of this.series) if (s.entry === entry.dataset.entry) s.shown = shown;
          this.draw();
        });
      }
    }

    home() {
      this.log = this.first.log;
      this.x = [...this.first.x];
      this.y = [...this.first.y];
      const toggle = this.figure.querySelector("[title='logarithmic axis']");
      if (toggle) toggle.setAttribute("aria-pressed", this.log);
      this.draw();
    }

    whole() {
      this.x = [...this.first.x];
      this.fit();
      this.draw();
    }

    // The axis of y on which everything between the ends of x has its place.
    fit() {
      let low = Infinity, high = -Infinity;
      for (const { shown, paths } of this.series)
        for (const { points } of shown ? paths : [])
          for (const [letter, x, y] of points)
            if (letter !== "Z" && x >= this.x[0] && x <= this.x[1] && (!this.log || y > 0)) {
              low = Math.min(low, this.place(y));
              high = Math.max(high, this.place(y));
            }
      const room = 0.05 * (high - low) || 0.1;
      if (low <= high) this.y = [low - room, high + room];
    }

    place(y) { return this.log ? Math.log10(Math.max(y, 1e-300)) : y; }
    px(x) { return (x - this.x[0]) / (this.x[1] - this.x[0]) * this.width; }
    py(y) { return (this.y[1] - this.place(y)) / (this.y[1] - this.y[0]) * this.height; }

    zoom(factor, at = [0.5, 0.5], onlyX = false) {
      const scaled = ([low, high], share) => {
        const centre = low + share * (high - low), width = (high - low) * factor;
        return [centre - share * width, centre + (1 - share) * width];
      };
      this.set(scaled(this.x, at[0]), onlyX ? this.y : scaled(this.y, at[1]));
    }

    // Views that are too narrow for the numbers that tell their ends apart are not taken.
    set(x, y) {
      const wide = ([low, high]) => high - low > 1e-9 * Math.max(Math.abs(low), Math.abs(high));
      if (!wide(x) || !wide(y)) return;
      [this.x, this.y] = [x, y];
      this.draw();
    }

    draw() {
      const across = this.svg.clientWidth;
      if (!across) return; // within something folded
      const named = this.ends.length > 0 && across >= NARROW;
      const whole = clamp(0.52 * across, 250, 420);
      this.width = across - LEFT - (named ? NAMES : RIGHT);
      this.height = whole - TOP - BOTTOM;
      this.svg.setAttribute("viewBox", `0 0 ${across} ${whole + ROW * this.rugs.length}`);
      this.plot.setAttribute("width", this.width);
      this.plot.setAttribute("height", this.height);
      this.drawFrame();
      for (const series of this.series) this.drawSeries(series);
      this.rugs.forEach((rug, row) => this.drawRug(rug, row));
      this.drawEnds(named);
      this.point(null);
    }

    drawFrame() {
      const { width, height } = this, frame = this.svg.querySelector(".frame");
      const bottom = TOP + height + ROW * this.rugs.length, parts = [];
      for (const [value, text] of ticks(...this.x, false, clamp(Math.floor(width / 55), 3, 8))) {
        const at = LEFT + this.px(value);
        parts.push(make("path", { class: "grid", d: `M${at},${TOP}V${bottom}` }));
        parts.push(make("text", { class: "middle", x: at, y: bottom + 16 }, text));
      }
      for (const [value, text] of ticks(...this.y, this.log, 6)) {
        const at = TOP + (this.y[1] - value) / (this.y[1] - this.y[0]) * height;
        parts.push(make("path", { class: "grid", d: `M${LEFT},${at}H${LEFT + width}` }));
        parts.push(make("text", { class: "end", x: LEFT - 6, y: at + 4 }, text));
      }
      parts.push(make("path", { class: "axis", d: `M${LEFT},${TOP}V${TOP + height}H${LEFT + width}` }));
      const turned = `translate(13,${TOP + height / 2})rotate(-90)`;
      parts.push(make("text", { class: "middle", x: LEFT + width / 2, y: bottom + 34 }, this.xLabel));
      parts.push(make("text", { class: "middle", transform: turned }, this.yLabel));
      frame.replaceChildren(...parts);
    }

    drawSeries(series) {
      series.group.style.display = series.shown ? "" : "none";
      const write = ([letter, x, y]) =>
        letter === "Z" ? "Z" : `${letter}${this.px(x).toFixed(2)},${this.py(y).toFixed(2)}`;
      for (const { path, points } of series.paths) path.setAttribute("d", points.map(write).join(""));
      const inside = series.points.filter(([, x]) => x >= this.x[0] && x <= this.x[1]);
      const every = series.kind === "line" ? Math.max(1, Math.floor(inside.length / MARKS)) : 1;
      const marked = series.marked ? inside.filter((_, place) => place % every === 0) : [];
      series.marks.setAttribute("d", marked.map((p) => write(["M", p[1], p[2]]) + series.glyph).join(""));
    }

    drawRug({ group, path, steps: own }, row) {
      const top = TOP + this.height + ROW * row, svg = path.parentNode;
      const text = group.querySelector("text");
      text.setAttribute("x", LEFT + 2);
      text.setAttribute("y", top + 12);
      svg.setAttribute("y", top + 13);
      svg.setAttribute("width", this.width);
      path.removeAttribute("transform");
      path.setAttribute("d", own.map((x) => `M${this.px(x).toFixed(2)},0v8`).join(""));
      group.querySelector(".grid").setAttribute("d", `M${LEFT},${top + ROW}h${this.width}`);
    }

    // As `_ends` of picture.py.
    drawEnds(named) {
      const heights = [];
      for (const { group, series } of this.ends) {
        const last = series && series.points.filter(([, x]) => x <= this.x[1]).at(-1);
        const at = last ? this.py(last[2]) : -1;
        const visible = named && series && series.shown && at >= 0 && at <= this.height;
        group.style.display = visible ? "" : "none";
        if (visible) heights.push([TOP + at, group, series]);
      }
      heights.sort((a, b) => a[0] - b[0]);
      let free = TOP;
      heights.forEach(([at, group, series], rank) => {
        const below = 13 * (heights.length - 1 - rank);
        const shown = Math.max(free, Math.min(at, TOP + this.height - below));
        free = shown + 13;
        const x = LEFT + this.width;
        group.querySelector("path").setAttribute("d", `M${x + 9},${shown}${series.glyph}`);
        const text = group.querySelector("text");
        text.setAttribute("x", x + 17);
        text.setAttribute("y", shown + 4);
      });
    }

    // Tell the values at the recorded place nearest to x; null: nothing.
    point(x) {
      this.at = null;
      for (const entry of this.entries) entry.querySelector("output").textContent = "";
      this.told.textContent = "\u00a0";
      this.cross.setAttribute("d", "");
      if (x === null) return;
      const nearest = (points) =>
        points.reduce((a, b) => (Math.abs(b[1] - x) < Math.abs(a[1] - x) ? b : a));
      const found = this.series.filter((s) => s.shown).map((s) => [s, nearest(s.points)]);
      if (!found.length) return;
      this.at = nearest(found.map(([, p]) => p))[1];
      const place = LEFT + this.px(this.at);
      this.cross.setAttribute("d", `M${place},${TOP}V${TOP + this.height + ROW * this.rugs.length}`);
      const near = 4 * (this.x[1] - this.x[0]) / this.width; // four pixels
      const events = this.rugs.filter((rug) => rug.steps.some((s) => Math.abs(s - this.at) <= near));
      this.told.textContent = [`${this.xLabel} ${number(this.at)}`, ...events.map((rug) => rug.name)]
        .join(" · ");
      for (const entry of this.entries) {
        const own = found.filter(([s]) => s.entry === entry.dataset.entry);
        entry.querySelector("output").textContent = own.map(([s, [, at, y]]) => {
          const elsewhere = Math.abs(at - this.at) > near ? ` (at ${number(at)})` : "";
          return `${own.length > 1 && s.note ? `${s.note} ` : ""}${number(y)}${elsewhere}`;
        }).join(" · ");
      }
    }

    listen() {
      const svg = this.svg;
      svg.setAttribute("tabindex", "0");
      const place = (event) => {
        const box = svg.getBoundingClientRect();
        return [event.clientX - box.left - LEFT, event.clientY - box.top - TOP];
      };
      const value = ([px, py]) => [
        this.x[0] + px / this.width * (this.x[1] - this.x[0]),
        this.y[1] - py / this.height * (this.y[1] - this.y[0]),
      ];
      const within = ([px, py]) => [clamp(px, 0, this.width), clamp(py, 0, this.height)];
      let start = null;
      const frame = (at) => {
        const flat = Math.abs(at[1] - start[1]) < 12; // a stroke along x zooms x alone
        const from = [Math.min(at[0], start[0]), flat ? 0 : Math.min(at[1], start[1])];
        const size = [Math.abs(at[0] - start[0]), flat ? this.height : Math.abs(at[1] - start[1])];
        this.box.setAttribute("x", LEFT + from[0]);
        this.box.setAttribute("y", TOP + from[1]);
        this.box.setAttribute("width", size[0]);
        this.box.setAttribute("height", size[1]);
        return [flat, from, size];
      };
      const release = (event) => {
        const [flat, from, size] = frame(within(place(event)));
        start = null;
        this.box.setAttribute("width", 0);
        if (size[0] < 6) return; // a click
        const [low, top] = value(from);
        const [high, bottom] = value([from[0] + size[0], from[1] + size[1]]);
        this.set([low, high], flat ? this.y : [bottom, top]);
        if (!flat) return;
        this.fit();
        this.draw();
      };
      svg.addEventListener("pointermove", (event) => this.point(value(within(place(event)))[0]));
      svg.addEventListener("pointerdown", (event) => {
        this.point(value(within(place(event)))[0]);
        if (event.button !== 0 || event.pointerType === "touch") return;
        start = within(place(event));
        const own = new AbortController(), until = { signal: own.signal };
        addEventListener("pointermove", (moved) => frame(within(place(moved))), until);
        addEventListener("pointerup", (last) => { own.abort(); release(last); }, until);
        addEventListener("pointercancel", () => {
          own.abort();
          start = null;
          this.box.setAttribute("width", 0);
        }, until);
      });
      svg.addEventListener("pointerleave", () => start || this.point(null));
      svg.addEventListener("dblclick", () => this.home());
      svg.addEventListener("wheel", (event) => {
        // The page scrolls unless the chart was chosen, or Ctrl is held.
        if (!event.ctrlKey && !event.metaKey && document.activeElement !== svg) return;
        event.preventDefault();
        const [px, py] = within(place(event));
        this.zoom(event.deltaY > 0 ? ZOOM : 1 / ZOOM, [px / this.width, 1 - py / this.height]);
      }, { passive: false });
      svg.addEventListener("keydown", (event) => {
        if (event.ctrlKey || event.metaKey || event.altKey) return;
        const width = this.x[1] - this.x[0];
        const along = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
        if (event.key === "+" || event.key === "=") this.zoom(1 / ZOOM, undefined, true);
        else if (event.key === "-") this.zoom(ZOOM, undefined, true);
        else if (event.key === "0" || event.key === "Escape") this.home();
        else if (along && event.shiftKey) this.set(this.x.map((v) => v + along * width / 8), this.y);
        else if (along) this.walk(along);
        else return;
        event.preventDefault();
      });
    }

    // To the next recorded place on the left (-1) or on the right (1).
    walk(along) {
      const places = [...new Set(this.series.filter((s) => s.shown)
        .flatMap((s) => s.points.map(([, x]) => x)))]
        .filter((x) => x >= this.x[0] && x <= this.x[1]).sort((a, b) => a - b);
      if (!places.length) return;
      const here = this.at === null ? -1 : places.indexOf(this.at);
      const next = here < 0 && along < 0 ? places.length - 1 : here + along;
      this.point(places[clamp(next, 0, places.length - 1)]);
    }

    save() {
      const quote = (text) => `"${text.replaceAll('"', '""')}"`;
      const rows = [[this.xLabel, "series", "kind", this.yLabel].map(quote).join(",")];
      for (const { entry, note, kind, points } of this.series) {
        const name = this.entries.find((e) => e.dataset.entry === entry)
          .querySelector("button").textContent;
        for (const [, x, y] of points) rows.push([x, quote(name), quote(note || kind), y].join(","));
      }
      const link = document.createElement("a");
      link.href = URL.createObjectURL(new Blob([rows.join("\n") + "\n"], { type: "text/csv" }));
      link.download = "curves.csv";
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href), 1000);
    }
  }

  // A map tells the value under the pointer, or where the arrow keys have gone.
  class Heatmap {
    constructor(figure) {
      const { at, values, rows, kind, shown } = figure.dataset;
      this.image = figure.querySelector("image");
      this.told = figure.querySelector("output");
      this.told.textContent = "\u00a0";
      this.steps = numbers(figure.dataset.steps);
      this.at = numbers(at);
      this.rows = numbers(rows);
      this.tell = kind === "draws" ? this.draws : this.spectrum;
      this.values = values.split(";").map((row) => (kind === "draws" ? row : numbers(row)));
      this.count = kind === "draws" ? Number(shown) : this.values[0].length;
      this.place = [0, 0];
      const svg = figure.querySelector("svg");
      svg.setAttribute("tabindex", "0");
      this.image.addEventListener("pointermove", (event) => this.point(event));
      this.image.addEventListener("pointerdown", (event) => this.point(event));
      svg.addEventListener("keydown", (event) => {
        const move = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
        const by = move[event.key];
        if (!by) return;
        event.preventDefault();
        this.place = [clamp(this.place[0] + by[0], 0, this.at.length - 1),
          clamp(this.place[1] + by[1], 0, this.count - 1)];
        this.told.textContent = this.tell(...this.place);
      });
    }

    point(event) {
      const box = this.image.getBoundingClientRect();
      const across = clamp((event.clientX - box.left) / box.width, 0, 1);
      const down = clamp((event.clientY - box.top) / box.height, 0, 0.999999);
      const step = this.steps[0] + across * (this.steps[1] - this.steps[0]);
      this.place = [this.column(step), Math.floor(down * this.count)];
      this.told.textContent = this.tell(...this.place);
    }

    // Spectra hold until they are measured anew nearer by; draws until the next.
    column(step) {
      if (this.tell === this.draws) return Math.max(0, this.at.filter((a) => a <= step).length - 1);
      return this.at.reduce((best, a, i) =>
        Math.abs(a - step) < Math.abs(this.at[best] - step) ? i : best, 0);
    }

    index(row) {
      const [first, last] = this.rows;
      return first + (this.count > 1 ? row / (this.count - 1) : 0) * (last - first);
    }

    spectrum(column, row) {
      const value = this.values[column][row], before = this.values[0][row];
      const name = this.rows[0] === 0 ? `rank ${this.index(row).toFixed(0)} %`
        : `index ${this.index(row).toFixed(0)}`;
      const times = before > 0 ? `, ${number(Number((value / before).toPrecision(3)))} × the first` : "";
      return `step ${number(this.at[column])}, ${name}: ${number(value)}${times}`;
    }

    draws(column, row) {
      const has = (mask) => (parseInt(mask.substr(2 * (row >> 3), 2), 16) >> (row & 7)) & 1;
      let last = column;
      while (last >= 0 && !has(this.values[last])) last--;
      const when = last < 0 ? "not drawn yet" : last === column ? "trains"
        : `last trained until step ${number(this.at[last + 1])}`;
      return `from step ${number(this.at[column])}, vector ${this.index(row).toFixed(0)}: ${when}`;
    }
  }

  for (const figure of document.querySelectorAll("figure.chart")) new Chart(figure);
  for (const figure of document.querySelectorAll("figure.map")) new Heatmap(figure);
  // What is folded is printed, too, but for the tables beside the pictures.
  addEventListener("beforeprint", () => {
    for (const part of document.querySelectorAll("details.chapter")) part.open = true;
  });
  document.documentElement.classList.add("live");
})();
