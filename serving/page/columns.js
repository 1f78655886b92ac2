// The columns: which ranking each shows, how its ranks differ from the first one's.
//
// A column is "dense" (the served bundle's towers), "bm25", "hybrid", or the id of another bundle (its towers).

import { card } from "./card.js";
import { $, el } from "./dom.js";

const KEPT = "columns";
const MOST = 4;
const NAMES = { dense: "Towers", bm25: "BM25", hybrid: "Hybrid" };
const FULL = { dense: "Towers", bm25: "BM25, words alone", hybrid: "Hybrid of both" };

export const columns = { shown: ["dense", "bm25"], others: [], active: "dense" };

// what a badge calls a column
export function short(column) {
  return { dense: "towers", bm25: "BM25", hybrid: "hybrid" }[column] ?? column.slice(0, 6);
}

export function name(column) {
  return NAMES[column] ?? `Bundle ${column.slice(0, 8)}`;
}

export function bodyOf(column) {
  return NAMES[column] ? { mode: column } : { mode: "dense", bundle_id: column };
}

// The columns that an address or an earlier visit asks for.
export function wanted(asked) {
  return asked.length ? asked : (localStorage.getItem(KEPT) ?? "").split(",").filter(Boolean);
}

// Whether a column needs another bundle than the served one.
export function isForeign(column) {
  return !NAMES[column];
}

// Take over the columns that were wanted; unknown ones are dropped and returned.
export function restore(names, others) {
  columns.others = others;
  const kept = [...new Set(names)].filter((column) => NAMES[column] || others.includes(column)).slice(0, MOST);
  if (kept.length > 1) columns.shown = kept;
  if (!columns.shown.includes(columns.active)) columns.active = columns.shown[0];
  return names.filter((column) => !NAMES[column] && !columns.shown.includes(column));
}

export function change(place, column) {
  if (column === null) columns.shown.splice(place, 1);
  else columns.shown[place] = column;
  if (!columns.shown.includes(columns.active)) columns.active = columns.shown[0];
  localStorage.setItem(KEPT, columns.shown.join(","));
}

// Draw the columns' frames, if others than before; `again` is called when somebody chooses another column.
export function draw(again) {
  const key = columns.shown.join();
  if ($("columns").dataset.key === key) return;
  $("columns").dataset.key = key;
  const held = [...$("columns").children].findIndex((part) => part.contains(document.activeElement));
  const added = document.activeElement === $("add");
  const drawn = columns.shown.map((column, place) => frame(column, place, again));
  $("columns").replaceChildren(...drawn);
  $("columns").dataset.count = String(drawn.length);
  $("tabs").replaceChildren(...columns.shown.map((column) => el("button", {
    type: "button", "data-tab": column, "aria-pressed": "false", click: () => activate(column),
  }, name(column))));
  $("add").onchange = () => { if ($("add").value) { change(columns.shown.length, $("add").value); again(); } };
  drawChoices();
  activate(columns.active);
  // whoever chose by keyboard goes on from there
  const place = added ? drawn.length - 1 : Math.min(held, drawn.length - 1);
  if (place >= 0) drawn[place].querySelector(".which").focus();
}

// Take over which other bundles may be columns; columns that are drawn stay.
export function offer(others) {
  columns.others = others;
  drawChoices();
}

function drawChoices() {
  const free = [...Object.keys(NAMES), ...columns.others].filter((column) => !columns.shown.includes(column));
  const option = (column, selected) => el("option", { value: column, selected }, FULL[column] ?? name(column));
  for (const select of document.querySelectorAll("#columns .which")) {
    const own = columns.shown[Number(select.dataset.place)];
    const order = [...Object.keys(NAMES), ...columns.others].filter((column) => column === own || free.includes(column));
    select.replaceChildren(...order.map((column) => option(column, column === own)));
  }
  $("adder").hidden = columns.shown.length >= MOST || free.length === 0;
  $("add").replaceChildren(el("option", { value: "" }, "another…"), ...free.map((column) => option(column, false)));
}

export function activate(column) {
  columns.active = column;
  for (const tab of $("tabs").children) tab.setAttribute("aria-pressed", String(tab.dataset.tab === column));
  for (const part of $("columns").children) part.classList.toggle("shown", part.dataset.column === column);
}

function frame(column, place, again) {
  const select = el("select", {
    class: "which", "data-place": String(place), "aria-label": `Column ${place + 1}`, change: () => { change(place, select.value); again(); },
  });
  const remove = columns.shown.length > 2
    ? el("button", { type: "button", class: "plain remove", "aria-label": `Remove ${name(column)}`, click: () => { change(place, null); again(); } }, "✕")
    : "";
  return el("section", { class: "column", "data-column": column, "aria-label": name(column) },
    el("div", { class: "head" }, select, el("small", { class: "cost", title: "Time in the server" }), remove),
    el("p", { class: "shared" }),
    el("ol", { class: "hits" }));
}

// Fill every column from its reply; ranks are compared with the first column, the first with the second.
export function fill(replies, context) {
  const ranks = replies.map((reply) => new Map((reply.body?.hits ?? []).map((hit) => [hit.doc_id, hit.rank])));
  const held = document.activeElement.closest("#columns .hit");
  const around = held?.closest(".column");
  replies.forEach((reply, place) => {
    const part = $("columns").children[place];
    const other = place === 0 ? 1 : 0;
    part.querySelector(".cost").textContent = reply.body ? cost(reply.body) : "";
    part.querySelector(".shared").textContent = place === 0 || !reply.body || !replies[0].body ? "" : overlap(ranks[place], ranks[0], columns.shown[0]);
    part.querySelector(".hits").replaceChildren(...items(reply, columns.shown[place], (hit) =>
      replies[other]?.body ? badge(hit, ranks[other], short(columns.shown[other])) : null, context));
  });
  // answers that come later leave whoever reads the earlier ones where they are
  const same = [...around?.querySelectorAll(".hit") ?? []].find((item) => item.dataset.doc === held.dataset.doc);
  same?.querySelector(".title").focus({ preventScroll: true });
  return ranks;
}

function items(reply, column, mark, context) {
  if (reply.pending) return [el("li", { class: "nothing" }, "Opening this bundle…")];
  if (reply.error) return [el("li", { class: "nothing" }, reply.error.message)];
  const why = column === "bm25" ? "No document shares a word with this query." : "Nothing was found.";
  if (!reply.body.hits.length) return [el("li", { class: "nothing" }, why)];
  const bundle = bodyOf(column).bundle_id;
  return reply.body.hits.map((hit, place) => card(hit, { ...context, column, bundle, mark: mark(hit), first: place === 0 }));
}

function cost({ timings_ms: { encode, search } }) {
  return `${encode > 0 ? `encode ${encode.toFixed(1)} · ` : ""}search ${search.toFixed(1)} ms`;
}

function overlap(ranks, first, firstName) {
  const shared = [...ranks.keys()].filter((docId) => first.has(docId)).length;
  return `${shared} of ${Math.max(ranks.size, first.size)} also by ${short(firstName)}`;
}

function badge(hit, elsewhere, other) {
  const rank = elsewhere.get(hit.doc_id);
  if (rank === undefined) return el("span", { class: "badge only", title: `Not among the results of ${other}` }, `not in ${other}`);
  const moved = rank - hit.rank;
  const title = `Rank ${rank} by ${other}`;
  if (moved === 0) return el("span", { class: "badge", title }, `= ${other} ${rank}`);
  const arrow = moved > 0 ? "▲" : "▼";
  return el("span", { class: `badge ${moved > 0 ? "up" : "down"}`, title }, `${arrow} ${Math.abs(moved)} · ${other} ${rank}`);
}
