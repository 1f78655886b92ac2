// The store's bundles: what was measured of each, the run that made it, and the curve of its index.

import { curve } from "./curve.js";
import { facts } from "./detail.js";
import { $, count, el, read } from "./dom.js";

// Show the list; `compare` is called with the id of a bundle that shall become a column.
export async function showBundles(served, compare) {
  const reply = await read("v1/bundles");
  if (reply.error) return [];
  const listed = reply.body.bundles;
  $("bundle-list").replaceChildren(...listed.map((bundle) => entry(bundle, served, compare)));
  $("bundles").hidden = listed.length === 0;
  $("to-bundles").hidden = listed.length === 0;
  return listed;
}

function entry(bundle, served, compare) {
  if (bundle.damage) {
    return el("article", { class: "bundle" },
      el("header", {}, el("code", {}, bundle.bundle_id), el("span", { class: "tag bad" }, "damaged")), el("p", { class: "why" }, bundle.damage));
  }
  const tags = [bundle.champion ? el("span", { class: "tag good" }, "champion") : "", bundle.served && !bundle.champion ? el("span", { class: "tag" }, "served") : ""];
  const asks = bundle.query_inputs.join() === served.query_inputs.join();
  return el("article", { class: "bundle", "data-bundle": bundle.bundle_id },
    el("header", {},
      el("code", {}, bundle.bundle_id), ...tags,
      el("span", { class: "soft" }, `${count(bundle.documents)} documents`, bundle.created_at ? ` · ${day(bundle.created_at)}` : ""),
      el("span", { class: "actions" }, run(bundle.run),
        bundle.served || !asks ? "" : el("button", { type: "button", class: "solid", click: () => compare(bundle.bundle_id) }, "Compare"))),
    metrics(bundle.evaluation),
    el("details", { open: bundle.champion },
      el("summary", {}, "Index and data"),
      facts(about(bundle)),
      bundle.index.curve ? curve(bundle.index.curve) : el("p", { class: "soft" }, "No curve was measured for this index.")));
}

function about(bundle) {
  const { factory, search, ann_recall: recall, k, target, target_met: met } = bundle.index;
  const parameters = Object.entries(search).map(([key, value]) => `${key} ${value}`).join(", ");
  const reached = recall === undefined ? "not measured" : `${recall.toFixed(4)} at ${k}`;
  const wanted = target === undefined ? "" : met === false ? `, below the target ${target}` : `, target ${target}`;
  const window = bundle.data_window ?? {};
  return [
    ["Index", parameters ? `${factory} (${parameters})` : factory],
    ["ANN recall", reached + wanted],
    ["Similarity", `${bundle.similarity}, ${bundle.dimension} dimensions`],
    ...(window.train_first ? [["Trained on", `${day(window.train_first)} to ${day(window.train_last)}`]] : []),
  ];
}

function run(made) {
  if (!made) return "";
  const label = `run ${made.run_id.slice(0, 8)}`;
  // the server gives addresses of the web only; this page does not rely on that
  if (made.url && /^https?:\/\//.test(made.url)) return el("a", { href: made.url, target: "_blank", rel: "noopener noreferrer" }, `MLflow ${label}`);
  return el("span", { class: "soft", title: `MLflow run ${made.run_id} of ${made.name}; start the server with serve.mlflow set to link it` }, `MLflow ${label}`);
}

function metrics(rows) {
  if (!rows?.length) return el("p", { class: "soft" }, "No evaluation was recorded in this bundle.");
  const names = [...new Set(rows.map((row) => row.metric))];
  const systems = [...new Set(rows.map((row) => row.system))];
  const best = new Map(names.map((metric) => [metric, Math.max(...rows.filter((row) => row.metric === metric).map((row) => row.value))]));
  const cell = (system, metric) => {
    const row = rows.find((one) => one.system === system && one.metric === metric);
    if (!row || row.value === null) return el("td", {}, "–");
    const interval = row.low === null || row.low === undefined ? "" : el("small", {}, `${row.low.toFixed(3)}–${row.high.toFixed(3)}`);
    return el("td", { class: row.value === best.get(metric) ? "best" : null }, row.value.toFixed(3), interval);
  };
  return el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Metrics" }, el("table", {},
    el("thead", {}, el("tr", {}, el("th", {}, "system"), ...names.map((metric) => el("th", {}, metric)))),
    el("tbody", {}, ...systems.map((system) => el("tr", {}, el("td", {}, system), ...names.map((metric) => cell(system, metric)))))));
}

function day(moment) {
  return moment.slice(0, 16).replace("T", " ");
}
