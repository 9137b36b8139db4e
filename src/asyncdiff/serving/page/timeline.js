// What the ranks did and when, as a chart: a row for each rank, along an axis in milliseconds.

import { element, many, shape } from "./dom.js";
import { classOf, entry, legend as legendOfSteps } from "./kinds.js";

const [LEFT, RIGHT, TOP] = [58, 30, 6];
const [ROW, BAR, SENT] = [40, 24, 5]; // heights: of a row, and in it of what is computed, and of what is on its way
const LEAST = 0.5; // pixels; what is shorter is still to be seen
const BETWEEN_TICKS = 64; // pixels, at least
let patterns = 0;

// A chart of so many pixels, of which `seconds` take all.
export function chart(timeline, title, seconds, width) {
  const scale = (width - LEFT - RIGHT) / Math.max(seconds, 1e-9);
  const x = (at) => LEFT + at * scale;
  const foot = TOP + ROW * timeline.ranks.length;
  const pattern = `waiting-${(patterns += 1)}`;
  const drawn = shape("svg", { width, height: foot + 22, role: "img", "aria-label": title }, hatch(pattern));
  for (const at of ticks(seconds, scale)) {
    drawn.append(shape("line", { x1: x(at), x2: x(at), y1: TOP, y2: foot + 4, class: "tick" }));
    const text = at ? Math.round(at * 1e6) / 1e3 : "0 ms";
    drawn.append(shape("text", { x: x(at), y: foot + 17, "text-anchor": at ? "middle" : "start" }, text));
  }
  timeline.ranks.forEach((row, place) => drawn.append(...rowOf(row, TOP + place * ROW, x, timeline.seconds, pattern)));
  return element("div", { class: "chart" }, element("p", { class: "chart-title" }, title), drawn);
}

export function legend(timelines) {
  const spans = timelines.flatMap((timeline) => timeline.ranks.flatMap((row) => row.spans));
  const found = new Set(spans.map((span) => span.what));
  const steps = legendOfSteps(new Set(spans.filter((span) => span.what === "step").map((span) => span.name)));
  const more = [];
  if (found.has("part")) {
    more.push(entry("part", "other parts of the pipeline"));
  }
  if (found.has("waiting")) {
    const swatch = shape("svg", { width: 16, height: 12 }, hatch("waiting-legend"));
    swatch.append(shape("rect", { width: 16, height: 12, fill: "url(#waiting-legend)" }));
    more.push(element("li", {}, swatch, "waiting for another rank"));
  }
  if (found.has("exchange")) {
    more.push(entry("exchange", "sent or received, until found to be over"));
  }
  return [...steps, ...more];
}

// The same in numbers: a column for each rank, milliseconds for each thing.
export function table(timeline, title) {
  const columns = timeline.ranks.map((row) => sums(row, timeline.seconds));
  const names = [...new Set(columns.flatMap((found) => [...found.keys()]))];
  const head = ["", ...timeline.ranks.map((row) => `rank ${row.rank}`)].map((text) => element("th", { scope: "col" }, text));
  const lines = names.map((name) => {
    const cells = columns.map((found) => element("td", {}, found.get(name) ?? "–"));
    return element("tr", {}, element("th", { scope: "row" }, name), ...cells);
  });
  return element("table", {}, element("caption", { class: "chart-title" }, title), element("tr", {}, ...head), ...lines);
}

function rowOf(row, top, x, seconds, pattern) {
  const width = (span) => Math.max(x(span.end) - x(span.begin), LEAST);
  const bar = (span, more) =>
    shape("rect", { x: x(span.begin), y: top, width: width(span), height: BAR, ...more }, shape("title", {}, said(span)));
  const of = (what) => row.spans.filter((span) => span.what === what);
  return [
    shape("text", { x: 0, y: top + 16 }, `rank ${row.rank}`),
    shape("rect", { x: x(0), y: top, width: x(seconds) - x(0), height: BAR, class: "row-back" }),
    ...of("part").map((span) => bar(span, { class: "part" })),
    ...of("step").map((span) => bar(span, { class: classOf(span.name) })),
    ...of("waiting").map((span) => bar(span, { fill: `url(#${pattern})` })),
    ...of("exchange").map((span) => bar(span, { class: "exchange", y: top + BAR + 2, height: SENT })),
  ];
}

function said(span) {
  const what = { step: `step ${span.step + 1}, ${span.name}`, part: span.name, exchange: "sent or received" }[span.what];
  return `${what ?? span.what}: ${milliseconds(span.end - span.begin)}, from ${milliseconds(span.begin)} on`;
}

function sums(row, all) {
  const of = (spans) => spans.reduce((sum, span) => sum + span.end - span.begin, 0);
  const steps = row.spans.filter((span) => span.what === "step");
  const found = new Map();
  for (const kind of new Set(steps.map((span) => span.name))) {
    const own = steps.filter((span) => span.name === kind);
    found.set(kind, `${many(own.length, "call")}, ${milliseconds(of(own))}`);
  }
  found.set("other parts", milliseconds(of(row.spans.filter((span) => span.what === "part"))));
  found.set("whole generation", milliseconds(all));
  return found.set("of it waiting", milliseconds(row.seconds_waited));
}

function milliseconds(seconds) {
  const number = seconds * 1000;
  return `${number.toFixed(number < 10 ? 2 : 0)} ms`;
}

function ticks(seconds, scale) {
  const least = BETWEEN_TICKS / scale;
  const power = 10 ** Math.floor(Math.log10(least));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((each) => each >= least);
  return Array.from({ length: Math.floor(seconds / step) + 1 }, (_, place) => place * step);
}

function hatch(id) {
  const size = { width: 5, height: 5 };
  const line = shape("line", { x1: 0, x2: 0, y1: 0, y2: 5, class: "hatch-line" });
  const turned = { id, ...size, patternUnits: "userSpaceOnUse", patternTransform: "rotate(45)" };
  return shape("defs", {}, shape("pattern", turned, shape("rect", { ...size, class: "hatch-back" }), line));
}
