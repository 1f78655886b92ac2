// The store's bundles: what was measured of each, the run that made it, and the curve of its index.

import { curve } from "./curve.js";
import { facts } from "./detail.js";
import { $, counted, el, read } from "./dom.js";

// Show the list and return it, or null where the server does not give it; `compare` is called with the id of a bundle that shall become a column.
export async function showBundles(served, compare) {
  const reply = await read("v1/bundles");
  if (reply.error) return null;
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
  const { update } = bundle;
  if (update) tags.push(el("span", { class: "tag", title: `${counted(update.added, "document")} added, ${update.updated} replaced, ${update.deleted} deleted` }, `update of ${update.parent.slice(0, 8)}`));
  const asks = bundle.query_inputs.join() === served.query_inputs.join();
  return el("article", { class: "bundle", "data-bundle": bundle.bundle_id },
    el("header", {},
      el("code", {}, bundle.bundle_id), ...tags,
      el("span", { class: "soft" }, counted(bundle.documents, "document"), bundle.created_at ? ` · ${day(bundle.created_at)}` : ""),
      el("span", { class: "actions" }, run(bundle.run),
        bundle.served || !asks ? "" : el("button", { type: "button", class: "solid", "aria-label": `Compare with ${bundle.bundle_id}`, click: () => compare(bundle.bundle_id) }, "Compare"))),
    update && bundle.evaluation?.length ? el("p", { class: "of-parent" }, `These figures were ${update.note}.`) : "",
    metrics(bundle),
    measured(bundle));
}

// The index, drawn when it is opened: a store may have a hundred curves.
function measured(bundle) {
  const part = el("details", {}, el("summary", {}, "Index and data"));
  const fill = () => {
    if (!part.open || part.children.length > 1) return;
    part.append(facts(about(bundle)),
      bundle.index.curve ? curve(bundle.index.curve) : el("p", { class: "soft" }, "No curve was measured for this index."));
  };
  part.addEventListener("toggle", fill);
  part.open = bundle.champion;
  fill();
  return part;
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

function metrics({ bundle_id: bundleId, evaluation: rows }) {
  if (!rows?.length) return el("p", { class: "soft" }, "No evaluation was recorded in this bundle.");
  const names = [...new Set(rows.map((row) => row.metric))];
  const systems = [...new Set(rows.map((row) => row.system))];
  const best = new Map(names.map((metric) => [metric, Math.max(...rows.filter((row) => row.metric === metric).map((row) => row.value))]));
  const cell = (system, metric) => {
    const row = rows.find((one) => one.system === system && one.metric === metric);
    const told = { role: "cell", "data-metric": metric };
    if (!row || row.value === null) return el("td", told, "–");
    const interval = row.low === null || row.low === undefined ? "" : el("small", {}, `${row.low.toFixed(3)}–${row.high.toFixed(3)}`);
    return el("td", { ...told, class: row.value === best.get(metric) ? "best" : null }, el("span", {}, row.value.toFixed(3), interval));
  };
  // on a phone the rows become cards; the roles keep it a table for those who listen
  return el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": `Metrics of ${bundleId}` }, el("table", { class: "metrics", role: "table" },
    el("thead", { role: "rowgroup" }, el("tr", { role: "row" }, ...["system", ...names].map((head) => el("th", { role: "columnheader", scope: "col" }, head)))),
    el("tbody", { role: "rowgroup" }, ...systems.map((system) => el("tr", { role: "row" },
      el("th", { role: "rowheader", scope: "row" }, system), ...names.map((metric) => cell(system, metric)))))));
}

function day(moment) {
  return moment.slice(0, 16).replace("T", " ");
}
