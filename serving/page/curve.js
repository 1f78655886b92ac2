// The curve of an index: how much of the exact neighbours each measured setting finds, at which speed.

import { count, counted, el, svg } from "./dom.js";

const WIDTH = 560, HEIGHT = 300, LEFT = 54, RIGHT = 18, TOP = 32, BOTTOM = 46;
const FAMILIES = 6;

export function curve({ target, k, queries, chosen, settings }) {
  const speeds = settings.map((one) => one.queries_per_second).filter((speed) => speed > 0);
  if (!speeds.length) return el("p", { class: "soft" }, "The settings of this index were not timed.");
  const across = scaleOf(speeds);
  const lowest = Math.min(target, ...settings.map((one) => one.ann_recall));
  const floor = Math.max(0, Math.floor((lowest - 0.02) * 20) / 20);
  const y = (recall) => TOP + (1 - recall) / (1 - floor) * (HEIGHT - TOP - BOTTOM);
  const names = [...new Set(settings.map((one) => one.factory))];
  const picture = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, class: "curve", role: "img", "aria-label": described(settings, chosen, k) },
    ...axes(across, y, floor, k),
    svg("line", { class: "target", x1: LEFT, x2: WIDTH - RIGHT, y1: y(target), y2: y(target) }),
    svg("text", { class: "label", x: WIDTH - RIGHT, y: y(target) + 16, "text-anchor": "end" }, `target ${target}`),
    ...names.map((name, family) => line(settings.filter((one) => one.factory === name), family, across.x, y)),
    ...settings.map((one, place) => point(one, names.indexOf(one.factory), place === chosen, across.x, y, k)));
  const legend = el("ul", { class: "legend" }, ...names.map((name, family) =>
    el("li", {}, svg("svg", { viewBox: "0 0 10 10", width: 10, height: 10, "aria-hidden": "true" }, svg("circle", { class: `family-${family % FAMILIES}`, cx: 5, cy: 5, r: 4 })), name)));
  return el("figure", { class: "measured" }, picture, legend,
    el("figcaption", {}, `${count(queries)} held-out ${queries === 1 ? "query" : "queries"}, one thread. Ringed: the setting that is served.`), table(settings, chosen, k));
}

function scaleOf(speeds) {
  const low = Math.log10(Math.min(...speeds)) - 0.1;
  const high = Math.max(Math.log10(Math.max(...speeds)) + 0.1, low + 0.3);
  const x = (speed) => LEFT + (Math.log10(speed) - low) / (high - low) * (WIDTH - LEFT - RIGHT);
  const ticks = [];
  for (let power = Math.floor(low); power <= high; power += 1) {
    for (const step of [1, 2, 5]) if (Math.log10(step) + power >= low && Math.log10(step) + power <= high) ticks.push(step * 10 ** power);
  }
  return { x, ticks };
}

function axes({ x, ticks }, y, floor, k) {
  const apart = [0.01, 0.02, 0.05, 0.1, 0.2].find((one) => (1 - floor) / one <= 6.5) ?? 0.2;
  const steps = Array.from({ length: Math.floor((1 - floor) / apart + 1e-6) + 1 }, (_, place) => 1 - place * apart);
  return [
    ...steps.flatMap((recall) => [
      svg("line", { class: "grid", x1: LEFT, x2: WIDTH - RIGHT, y1: y(recall), y2: y(recall) }),
      svg("text", { class: "tick", x: LEFT - 8, y: y(recall) + 4, "text-anchor": "end" }, recall.toFixed(2)),
    ]),
    ...ticks.map((speed) => svg("text", { class: "tick", x: x(speed), y: HEIGHT - BOTTOM + 18, "text-anchor": "middle" }, speed >= 1000 ? `${speed / 1000}k` : String(speed))),
    svg("text", { class: "label", x: (LEFT + WIDTH - RIGHT) / 2, y: HEIGHT - 6, "text-anchor": "middle" }, "queries a second, faster to the right"),
    svg("text", { class: "label", x: 4, y: 15 }, `ANN recall@${k}`),
  ];
}

function line(settings, family, x, y) {
  const path = settings.filter((one) => one.queries_per_second > 0)
    .sort((a, b) => a.ann_recall - b.ann_recall)
    .map((one, place) => `${place ? "L" : "M"}${x(one.queries_per_second).toFixed(1)} ${y(one.ann_recall).toFixed(1)}`).join("");
  return svg("path", { class: `line family-${family % FAMILIES}`, d: path });
}

function point(one, family, isChosen, x, y, k) {
  if (!(one.queries_per_second > 0)) return "";
  const at = { cx: x(one.queries_per_second).toFixed(1), cy: y(one.ann_recall).toFixed(1) };
  const told = svg("title", {}, `${words(one)}: ANN recall@${k} ${one.ann_recall.toFixed(4)}, ${count(Math.round(one.queries_per_second))} queries/s`);
  return svg("g", {}, told, isChosen ? svg("circle", { class: "chosen", ...at, r: 8 }) : "", svg("circle", { class: `family-${family % FAMILIES}`, ...at, r: 4 }));
}

function table(settings, chosen, k) {
  const number = (value, digits = 0) => (value === undefined ? "–" : value.toLocaleString("en", { maximumFractionDigits: digits }));
  const rows = settings.map((one, place) => el("tr", { class: place === chosen ? "chosen" : null },
    el("td", {}, words(one)), el("td", {}, one.ann_recall.toFixed(4)), el("td", {}, number(one.queries_per_second)),
    el("td", {}, number(one.p50_us)), el("td", {}, number(one.megabytes, 1)), el("td", {}, number(one.build_seconds, 1))));
  const heads = ["index", `ANN recall@${k}`, "queries/s", "p50 µs", "MB", "build s"];
  return el("details", { class: "numbers" }, el("summary", {}, "As a table"),
    el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Measured settings" },
      el("table", {}, el("thead", {}, el("tr", {}, ...heads.map((head) => el("th", { scope: "col" }, head)))), el("tbody", {}, ...rows))));
}

function words({ factory, parameters }) {
  const set = Object.entries(parameters).map(([key, value]) => `${key} ${value}`).join(", ");
  return set ? `${factory}, ${set}` : factory;
}

function described(settings, chosen, k) {
  const one = settings[chosen];
  return one ? `ANN recall against speed of ${counted(settings.length, "setting")}; served is ${words(one)} with ANN recall@${k} ${one.ann_recall.toFixed(4)}` : "ANN recall against speed";
}
