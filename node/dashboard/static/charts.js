// The charts over the last five minutes, drawn by uPlot (vendor/, MIT). Values under the pointer, else the newest, are
// in the legend, which is plain HTML: it can be read aloud, copied, and read without telling colours apart.

import { h } from "./dom.js";
import { number, NONE, perSecond, seconds, share } from "./format.js";

const SPAN_S = 300;
const HOLE_S = 10; // so long without a value, and a line breaks off: nothing was measured there
const LEAST_LOG = 0.01; // an answer from the cache takes less, and how much less is of no interest

export const PLACES = [
  ["local_per_s", "Local engine", "--local"],
  ["premises_per_s", "On the premises", "--premises"],
  ["cloud_per_s", "Cloud", "--cloud"],
  ["cache_per_s", "Cache", "--cache"],
  ["unserved_per_s", "Not answered", "--unserved"],
];
const LINES = ["--line-1", "--line-2", "--line-3", "--line-4"];

const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

/**
 * One chart in `figure`. `series` is a list of {label, colour, value(point), show}; `stacked` piles them up. On a `log`
 * scale one value that is a thousand times the others does not press them flat.
 */
class Chart {
  constructor(figure, { series, format, tick = format, stacked = false, log = false, most = null, least = 1, smooth = 0, empty, label }) {
    Object.assign(this, { figure, series, format, tick, stacked, log, most, least, smooth, empty, alone: [], away: [] });
    this.legend = h("ul", { class: "legend" });
    this.box = h("div", { class: "plot", role: "img", "aria-label": label });
    this.note = h("p", { class: "empty over", hidden: true });
    figure.append(this.legend, h("div", { class: "plot-box" }, this.box, this.note));
    new ResizeObserver(() => this.plot?.setSize(this.size())).observe(this.box);
  }

  size = () => ({ width: Math.max(120, this.box.clientWidth), height: Math.max(120, this.box.clientHeight) });

  build() {
    this.plot?.destroy();
    const axis = {
      stroke: colour("--faint"), font: `11px ${getComputedStyle(document.body).fontFamily}`,
      grid: { stroke: colour("--grid"), width: 1 }, ticks: { show: false },
    };
    // Drawn from the last on, each over the one before: of a pile the top first.
    const order = [...this.series].reverse();
    this.plot = new uPlot({
      ...this.size(), padding: [8, 16, 0, 0], legend: { show: false },
      cursor: { points: { show: !this.stacked, size: 6 }, drag: { x: false, y: false }, y: false },
      scales: {
        x: { range: () => [this.end - SPAN_S, this.end] },
        y: this.log
          ? { distr: 3, range: (_, least, most) => logRange(least, most) }
          : { range: (_, __, most) => [0, this.most ?? Math.max(niceMost(most || 0), this.least)] },
      },
      axes: [
        { ...axis, size: 26, space: 56, incrs: [60, 120, 300], values: (_, at) => at.map((x) => clockOf(x)) },
        { ...axis, size: 58, space: 34, values: (_, at) => at.map((y) => this.tick(y)), ...(this.log && { splits: (_, __, least, most) => logSplits(least, most), filter: (_, at) => at }) },
      ],
      series: [{}, ...order.map((each) => ({
        label: each.label, stroke: colour(each.colour), width: this.stacked ? 1 : 2, dash: each.dash,
        fill: this.stacked ? colour(each.colour) : undefined, points: { show: false, size: 5, fill: colour(each.colour), filter: (_, at) => this.alone[at - 1] ?? null },
      }))],
      hooks: { setCursor: [(plot) => this.tell(plot.cursor.idx)], drawClear: [(plot) => this.shade(plot)] },
    }, this.data, this.box);
  }

  /** A shade behind the seconds without an engine. */
  shade({ ctx, bbox, valToPos }) {
    ctx.save();
    ctx.fillStyle = colour("--grid");
    const at = (x) => Math.min(bbox.left + bbox.width, Math.max(bbox.left, valToPos(x, "x", true)));
    for (const [from, to] of this.away) ctx.fillRect(at(from), bbox.top, at(to) - at(from), bbox.height);
    ctx.restore();
  }

  update(newest, end, away) {
    const points = this.smooth ? smoothed(newest, this.smooth, this.series) : newest;
    this.end = end;
    this.away = away;
    this.points = points;
    const values = this.series.map((each) => points.map((point) => (point === null ? null : each.value(point))));
    let drawn = values;
    if (this.log) {
      const joined = values.map((column) => bridged(column, points));
      drawn = joined.map((each) => each.column.map((value) => (typeof value === "number" ? Math.max(value, LEAST_LOG) : value)));
      this.alone = joined.map((each) => each.alone).reverse();
    }
    if (this.stacked) {
      const sums = points.map(() => 0);
      drawn = values.map((column) => column.map((value, i) => (value === null ? null : (sums[i] += value))));
    }
    this.data = [points.map((point, i) => (point === null ? points[i - 1].at_s + 0.01 : point.at_s)), ...drawn.reverse()];
    if (this.plot) this.plot.setData(this.data);
    else this.build();
    const said = this.empty(values);
    this.note.hidden = !said;
    this.note.textContent = said ?? "";
    this.tell(this.plot.cursor.idx);
  }

  tell(at) {
    let point = this.points?.[at ?? this.points.length - 1] ?? null;
    this.series.forEach((each, i) => {
      const item = this.legend.children[i] ?? this.legend.appendChild(h("li", {}, h("i", { class: "swatch" }), h("span", { text: each.label }), h("b", {})));
      item.firstChild.style.background = each.dash ? `repeating-linear-gradient(90deg, var(${each.colour}) 0 4px, transparent 4px 6px)` : `var(${each.colour})`;
      const value = point === null ? null : each.latest && at === null ? each.latest(this.points) : each.value(point);
      item.lastChild.textContent = value === null || value === undefined ? NONE : (each.format ?? this.format)(value);
      item.hidden = Boolean(each.hideWhenNever) && !this.points?.some((one) => one !== null && each.value(one) > 0);
    });
  }
}

const two = (n) => String(n).padStart(2, "0");
function clockOf(unix) {
  const at = new Date(unix * 1000);
  return `${two(at.getHours())}:${two(at.getMinutes())}`;
}

/** The next of 1, 2, 5, 10, 20 … above `most`. */
function niceMost(most) {
  if (most <= 0) return 0;
  const wanted = most * 1.08;
  const ten = 10 ** Math.floor(Math.log10(wanted));
  return ten * [1, 1.5, 2, 3, 4, 5, 6, 8, 10].find((step) => step * ten >= wanted);
}

/** From a round number below to one above. */
function logRange(least, most) {
  if (!(most > 0)) return [0.01, 10];
  const below = 10 ** Math.floor(Math.log10(least));
  const above = 10 ** Math.ceil(Math.log10(most));
  const low = ([5, 2].find((step) => step * below <= least) ?? 1) * below;
  const high = ([0.2, 0.5].find((step) => step * above >= most) ?? 1) * above;
  return [low, Math.max(high, 10 * low)];
}

/** Powers of ten, and where there are few of them, numbers between. */
function logSplits(least, most) {
  const steps = most / least > 150 ? [1] : most / least > 15 ? [1, 3] : [1, 2, 5];
  const tens = [];
  for (let ten = Math.floor(Math.log10(least)); ten <= Math.ceil(Math.log10(most)); ten += 1) tens.push(10 ** ten);
  return tens.flatMap((ten) => steps.map((step) => step * ten)).filter((y) => y >= least * 0.999 && y <= most * 1.001);
}

/**
 * A column whose line goes on over short holes (undefined) and breaks off at long ones (null), and the places that are
 * then alone and need a dot: `points` are seconds, and not in every one a stream begins.
 */
function bridged(column, points) {
  const known = column.flatMap((value, i) => (value === null ? [] : [i]));
  const joins = (a, b) => points[b].at_s - points[a].at_s <= HOLE_S && !points.slice(a, b).includes(null);
  const bridges = column.slice();
  known.forEach((at, i) => {
    const next = known[i + 1];
    if (next !== undefined && joins(at, next)) bridges.fill(undefined, at + 1, next);
  });
  const alone = known.filter((at, i) => !(i > 0 && joins(known[i - 1], at)) && !(i + 1 < known.length && joins(at, known[i + 1])));
  return { column: bridges, alone };
}

/** What holds all charts; `show(points)` draws the last five minutes of them. */
export function makeCharts($) {
  const nothing = (message) => (values) => (values.every((column) => column.every((value) => !value)) ? message : null);
  const last = (pick) => (points) => pick(points.findLast((point) => point !== null && pick(point) !== undefined) ?? {}) ?? null;
  const charts = [
    new Chart($("chart-requests"), {
      label: "Stacked areas: requests answered per second by the local engine, the cloud and the cache",
      stacked: true, format: perSecond, smooth: 5,
      series: PLACES.map(([field, label, name]) => ({ label, field, colour: name, value: (point) => point[field] ?? 0, hideWhenNever: field === "premises_per_s" || field === "unserved_per_s" })),
      empty: nothing("No requests in the last five minutes. Ask something in the playground below."),
    }),
    new Chart($("chart-ttft"), {
      label: "Lines on a logarithmic scale: predicted and measured time to first token in the engine, median and 95th percentile of all streams",
      format: seconds, tick: (y) => (y < 1 ? `${number(1000 * y)}\u202fms` : `${number(y)}\u202fs`), log: true, smooth: 5,
      series: [
        ["predicted_ttft_s", "Predicted here", "--line-1", median, [6, 4]],
        ["measured_ttft_s", "Measured here", "--line-1", median],
        ["ttft_p50_s", "All, median", "--line-2", median],
        ["ttft_p95_s", "All, 95 %", "--line-3", (values) => Math.max(...values)],
      ].map(([field, label, name, fold, dash]) => ({ label, field, colour: name, fold, dash, value: (point) => point[field] ?? null, latest: last((point) => point[field]) })),
      empty: nothing("No streamed answer in the last five minutes."),
    }),
    new Chart($("chart-queue"), {
      label: "Lines: requests waiting in the node's queue, and sequences running in engines",
      format: number, least: 4,
      series: [
        { label: "Waiting in the queue", colour: "--line-3", value: (point) => sum(point, "queued") ?? 0 },
        { label: "Running in engines", colour: "--line-1", value: (point) => sum(point, "running") },
      ],
      empty: () => null,
    }),
  ];
  let kv = null;
  let models = "";

  function kvChart(names) {
    kv?.plot?.destroy();
    kv?.legend.remove();
    kv?.box.parentElement.remove();
    kv = new Chart($("chart-kv"), {
      label: "Lines: used share of each engine's KV cache",
      format: share, most: 1,
      series: names.map((name, i) => ({ label: name, colour: LINES[i % LINES.length], value: (point) => point.models?.[name]?.kv_cache_usage ?? null })),
      empty: () => (names.length ? null : "No engine here: the cloud serves every model."),
    });
  }

  return {
    show(points, now, end) {
      const away = now.models.flatMap((model) => awayTimes(model.engine?.changes ?? [], end));
      $("away-note").hidden = !away.some(([, to]) => to > end - SPAN_S);
      const wanted = now.models.filter((model) => model.engine).map((model) => model.name);
      if (kv === null || models !== wanted.join("\n")) {
        kvChart(wanted);
        models = wanted.join("\n");
      }
      const gapped = withGaps(points);
      for (const chart of [...charts, kv]) chart.update(gapped, end, away);
    },
    recolour() {
      for (const chart of [...charts, kv]) if (chart?.plot) chart.build();
    },
  };
}

function sum(point, field) {
  const known = Object.values(point.models ?? {}).map((model) => model[field]).filter((value) => value !== undefined);
  return known.length ? known.reduce((a, b) => a + b, 0) : null;
}

const mean = (values) => values.reduce((a, b) => a + b, 0) / values.length;
const median = (values) => [...values].sort((a, b) => a - b)[Math.floor(values.length / 2)];

/** Each point with one value for the last `count` of every series' field: requests come in ones and twos. */
function smoothed(points, count, series) {
  return points.map((point, i) => {
    if (point === null) return null;
    const last = points.slice(Math.max(0, i + 1 - count), i + 1).filter((each) => each !== null);
    const folded = series.filter(({ value }) => value(point) !== null)
      .map(({ field, value, fold = mean }) => [field, fold(last.map(value).filter((each) => each !== null))]);
    return { at_s: point.at_s, ...Object.fromEntries(folded) };
  });
}

/** From when to when an engine was not there, by the changes of its state. */
function awayTimes(changes, end) {
  const isAway = ({ state }) => ["starting", "down", "given_up"].includes(state);
  return changes.flatMap((change, i) => (isAway(change) ? [[change.at_s, changes[i + 1]?.at_s ?? end]] : []));
}

/** A hole where seconds are missing: while the page was not connected nothing is known. */
function withGaps(points) {
  return points.flatMap((point, i) => (i > 0 && point.at_s - points[i - 1].at_s > 3 ? [null, point] : [point]));
}
