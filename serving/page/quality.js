// What the bundle's manifest says about its quality, as a table and a few facts.

import { el } from "./dom.js";

export function showQuality(details, body, bundle) {
  const rows = (bundle.manifest.evaluation ?? []).filter((row) => row.slice === "all");
  const index = bundle.manifest.index;
  const recall = index.ann_recall;
  const facts = [
    ["Bundle", bundle.bundle_id],
    ["Index", `${index.factory}${parameters(index.search)}; ${bundle.index}`],
    ["ANN recall", `${recall.value.toFixed(4)} at ${recall.k}, on ${recall.queries} ${recall.split} queries`],
    ["Similarity", `${bundle.manifest.similarity}, ${bundle.manifest.dimension} dimensions`],
    ["Trained on", `${day(bundle.manifest.data_window.train_first)} to ${day(bundle.manifest.data_window.train_last)}`],
  ];
  body.replaceChildren(
    rows.length ? table(rows) : el("p", {}, "No evaluation was recorded in this bundle."),
    el("dl", { class: "facts" }, ...facts.flatMap(([name, value]) => [el("dt", {}, name), el("dd", {}, value)])),
  );
  details.hidden = false;
}

function table(rows) {
  const metrics = [...new Set(rows.map((row) => row.metric))];
  const systems = [...new Set(rows.map((row) => row.system))];
  const best = new Map(metrics.map((metric) => [
    metric, Math.max(...rows.filter((row) => row.metric === metric).map((row) => row.value)),
  ]));
  const cell = (system, metric) => {
    const row = rows.find((entry) => entry.system === system && entry.metric === metric);
    if (!row || row.value === null) return el("td", {}, "–");
    const interval = row.low === null || row.low === undefined ? "" : el("small", {}, `${row.low.toFixed(3)}–${row.high.toFixed(3)}`);
    return el("td", row.value === best.get(metric) ? { class: "best" } : {}, row.value.toFixed(3), interval);
  };
  const head = el("tr", {}, el("th", {}, "system"), ...metrics.map((metric) => el("th", {}, metric)));
  const lines = systems.map((system) => el("tr", {}, el("td", {}, system), ...metrics.map((metric) => cell(system, metric))));
  return el("div", { class: "quality-scroll" }, el("table", {}, el("thead", {}, head), el("tbody", {}, ...lines)));
}

function parameters(search) {
  const shown = Object.entries(search).map(([name, value]) => `${name} ${value}`);
  return shown.length ? ` (${shown.join(", ")})` : "";
}

function day(moment) {
  return moment ? moment.slice(0, 16).replace("T", " ") : "–";
}
