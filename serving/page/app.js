// The page: one query, the towers' results beside BM25's. All text from the catalogue enters the document as
// text nodes, never as markup.

import { el, highlighted, read, send } from "./dom.js";
import { showQuality } from "./quality.js";

const $ = (id) => document.getElementById(id);
const MODES = ["dense", "bm25"];
const TYPING_PAUSE_MS = 220;

const state = { kind: null, history: [], suggestions: [], active: -1, request: 0, bundle: null };
let pause = 0;

async function start() {
  restoreTheme();
  listen();
  await connect();
}

async function connect() {
  const reply = await read("v1/bundle");
  if (reply.error) {
    setStatus("down", reply.error.code === "not_ready" ? "no bundle is served yet" : "no answer");
    $("empty-text").textContent = reply.error.message;
    setTimeout(connect, 2000);
    return;
  }
  showBundle(reply.body);
  state.kind = reply.body.query_inputs.includes("text") ? "text" : "history";
  $("query").disabled = false;
  $("query").placeholder = state.kind === "text" ? "Type a query" : "Find a title to add to the history";
  $("empty-title").textContent = state.kind === "text"
    ? "See what the towers find, and what words alone find"
    : "Pick what somebody clicked, see what comes next";
  $("empty-text").textContent = state.kind === "text"
    ? `Type what a person would type. ${count(reply.body.documents)} documents are searched.`
    : `Search titles, choose a few, and the towers recommend from ${count(reply.body.documents)} documents.`;
  await restoreQuery();
  $("query").focus();
}

function showBundle(bundle) {
  state.bundle = bundle;
  const parts = [el("code", {}, bundle.bundle_id.slice(0, 8)), el("span", { class: "more" }, ` · ${count(bundle.documents)} documents`)];
  setStatus(bundle.refused ? "warn" : "ready", ...parts);
  $("status").title = `bundle ${bundle.bundle_id}, loaded ${bundle.loaded_at}, ${bundle.index}`;
  if (bundle.refused) alertWith(`The champion could not be loaded: ${bundle.refused.message}`, "warn");
  showQuality($("quality"), $("quality-body"), bundle);
}

function setStatus(kind, ...content) {
  $("status").dataset.state = kind;
  $("status-text").replaceChildren(...content);
}

// --- asking -------------------------------------------------------------------------------------------------

function query() {
  const k = Number($("k").value);
  if (state.kind === "text") return { text: $("query").value, k };
  return { history: state.history.map((document) => document.doc_id), k };
}

async function ask() {
  const asked = query();
  const empty = state.kind === "text" ? !asked.text.trim() : asked.history.length === 0;
  const number = ++state.request;
  remember(asked);
  alertWith("");
  if (empty) return showEmpty();
  $("results").setAttribute("aria-busy", "true");
  const started = performance.now();
  const body = { ...asked, with_documents: true, exclude: asked.history ?? [] };
  const replies = await Promise.all(MODES.map((mode) => send("v1/search", { ...body, mode })));
  if (number !== state.request) return;
  $("results").removeAttribute("aria-busy");
  const failed = replies.find((reply) => reply.error);
  if (failed) {
    showEmpty(true);
    return alertWith(failed.error.message);
  }
  const [dense, bm25] = replies.map((reply) => reply.body);
  showResults(dense, bm25, performance.now() - started);
  if (dense.bundle_id !== state.bundle.bundle_id) refreshBundle();
}

async function refreshBundle() {
  const reply = await read("v1/bundle");
  if (!reply.error) showBundle(reply.body);
}

function showEmpty(quiet = false) {
  $("results").hidden = true;
  $("empty").hidden = quiet;
  $("results").removeAttribute("aria-busy");
}

function showResults(dense, bm25, roundTrip) {
  $("empty").hidden = true;
  $("results").hidden = false;
  const ranks = [dense, bm25].map((reply) => new Map(reply.hits.map((hit) => [hit.doc_id, hit.rank])));
  fill("dense", dense, ranks[1], "BM25");
  fill("bm25", bm25, ranks[0], "towers");
  const shared = dense.hits.filter((hit) => ranks[1].has(hit.doc_id)).length;
  const most = Math.max(dense.hits.length, bm25.hits.length);
  $("summary").replaceChildren(
    el("span", {}, el("b", {}, `${shared} of ${most}`), " in both"),
    el("span", {}, el("b", {}, `${Math.round(roundTrip)} ms`), " for both answers"),
    ...[...new Set([...dense.notes, ...(dense.bundle_id === bm25.bundle_id ? [] : ["bundles changed meanwhile"])])]
      .map((note) => el("span", {}, note)),
  );
}

function fill(mode, reply, elsewhere, other) {
  const column = document.querySelector(`.column[data-mode="${mode}"]`);
  const { encode, search, total } = reply.timings_ms;
  const detail = mode === "dense" ? `encode ${encode.toFixed(1)} · search ${search.toFixed(1)} · ` : "";
  column.querySelector("small").textContent = `${detail}${total.toFixed(1)} ms`;
  const hits = reply.hits.map((hit) => card(hit, mode, badge(hit, elsewhere, other)));
  const why = mode === "bm25" ? "No document shares a word with this query." : "Nothing was found.";
  column.querySelector(".hits").replaceChildren(...(hits.length ? hits : [el("li", { class: "nothing" }, why)]));
}

// --- results ------------------------------------------------------------------------------------------------

function badge(hit, elsewhere, other) {
  const rank = elsewhere.get(hit.doc_id);
  if (rank === undefined) return el("span", { class: "badge only", title: `Not among the results of ${other}` }, "only here");
  const change = rank - hit.rank;
  const title = `Rank ${rank} by ${other}`;
  if (change === 0) return el("span", { class: "badge", title }, `= ${other} ${rank}`);
  const arrow = change > 0 ? "▲" : "▼";
  return el("span", { class: `badge ${change > 0 ? "up" : "down"}`, title }, `${arrow} ${Math.abs(change)} · ${other} ${rank}`);
}

function card(hit, mode, mark) {
  // of a history's many words nearly every document has some; they explain only what BM25 found
  const terms = state.kind === "history" && mode === "dense" ? [] : hit.matched_terms ?? [];
  const title = hit.title.trim();
  const similar = el("button", { class: "link", type: "button" }, "similar");
  similar.addEventListener("click", () => showSimilar(hit));
  const item = el("li", { class: "hit", "data-doc": hit.doc_id },
    el("span", { class: "rank" }, String(hit.rank)),
    el("span", { class: title ? "title" : "title untitled", title }, ...highlighted(title || "untitled", terms)),
    el("span", { class: "score", title: mode === "bm25" ? "BM25 score" : "similarity" }, hit.score.toFixed(mode === "bm25" ? 2 : 4)),
    hit.text.trim() ? el("span", { class: "text" }, ...highlighted(hit.text, terms)) : "",
    el("span", { class: "foot" }, mark ?? "", el("code", { title: hit.doc_id }, hit.doc_id), similar),
  );
  item.addEventListener("mouseenter", () => twins(hit.doc_id, true));
  item.addEventListener("mouseleave", () => twins(hit.doc_id, false));
  return item;
}

function twins(docId, on) {
  const cards = [...document.querySelectorAll("#results .hit")].filter((item) => item.dataset.doc === docId);
  for (const item of cards) item.classList.toggle("twin", on && cards.length > 1);
}

async function showSimilar(hit) {
  $("similar-title").textContent = hit.title.trim() || hit.doc_id;
  $("similar-hits").replaceChildren();
  if (!$("similar").open) $("similar").showModal();
  const path = hit.doc_id.split("/").map(encodeURIComponent).join("/");
  const reply = await read(`v1/documents/${path}/neighbors?k=10&with_documents=true`);
  const shown = reply.error
    ? [el("li", { class: "nothing" }, reply.error.message)]
    : reply.body.hits.map((near) => card(near, "dense"));
  $("similar-hits").replaceChildren(...(shown.length ? shown : [el("li", { class: "nothing" }, "There is no other document.")]));
}

// --- a history made of titles -------------------------------------------------------------------------------

async function suggest() {
  const text = $("query").value;
  if (!text.trim()) return closeSuggestions();
  const number = ++state.request;
  const reply = await send("v1/search", { text, mode: "bm25", k: 8, with_documents: true });
  if (number !== state.request) return;
  if (reply.error) {
    closeSuggestions();
    return alertWith(reply.error.message);
  }
  state.suggestions = reply.body.hits.filter((hit) => !state.history.some((known) => known.doc_id === hit.doc_id));
  state.active = state.suggestions.length ? 0 : -1;
  drawSuggestions();
}

function drawSuggestions() {
  const items = state.suggestions.map((hit, place) => {
    const item = el("li", { role: "option", "aria-selected": String(place === state.active) },
      el("span", {}, ...highlighted(hit.title.trim() || hit.doc_id, hit.matched_terms ?? [])));
    item.addEventListener("mousedown", (event) => { event.preventDefault(); add(hit); });
    return item;
  });
  $("suggestions").replaceChildren(...(items.length ? items : [el("li", { class: "none" }, "No title has these words")]));
  $("suggestions").hidden = false;
}

function closeSuggestions() {
  state.suggestions = [];
  state.active = -1;
  $("suggestions").hidden = true;
}

function add(hit) {
  state.history.push({ doc_id: hit.doc_id, title: hit.title.trim() || hit.doc_id });
  $("query").value = "";
  closeSuggestions();
  drawChips();
  ask();
}

function drawChips() {
  $("chips").hidden = state.history.length === 0;
  $("chips").replaceChildren(...state.history.map((document, place) => {
    const remove = el("button", { type: "button", "aria-label": `Remove ${document.title}` }, "✕");
    remove.addEventListener("click", () => { state.history.splice(place, 1); drawChips(); ask(); $("query").focus(); });
    return el("li", {}, el("span", { title: document.title }, document.title), remove);
  }));
}

// --- keyboard, address, theme -------------------------------------------------------------------------------

function listen() {
  $("form").addEventListener("submit", (event) => { event.preventDefault(); onEnter(); });
  $("query").addEventListener("input", () => {
    clearTimeout(pause);
    pause = setTimeout(state.kind === "text" ? ask : suggest, TYPING_PAUSE_MS);
  });
  $("query").addEventListener("keydown", onKeyInBox);
  $("query").addEventListener("blur", () => closeSuggestions());
  $("k").addEventListener("change", ask);
  $("theme").addEventListener("click", switchTheme);
  for (const tab of document.querySelectorAll("[data-tab]")) tab.addEventListener("click", () => showTab(tab.dataset.tab));
  document.addEventListener("keydown", (event) => {
    const typing = event.target instanceof HTMLInputElement || event.target instanceof HTMLSelectElement;
    if (event.key === "/" && !typing && !$("similar").open) { event.preventDefault(); $("query").focus(); $("query").select(); }
    if (event.key === "Escape" && !typing && !$("similar").open) clear();
  });
}

function onEnter() {
  clearTimeout(pause);
  if (state.kind === "history" && state.active >= 0) return add(state.suggestions[state.active]);
  if (state.kind === "history" && $("query").value.trim()) return suggest();
  return ask();
}

function onKeyInBox(event) {
  if (event.key === "Escape") {
    event.preventDefault();
    if (!$("suggestions").hidden) return closeSuggestions();
    return clear();
  }
  if (state.kind !== "history") return;
  if (event.key === "Backspace" && !$("query").value && state.history.length) { state.history.pop(); drawChips(); ask(); }
  const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
  if (step && state.suggestions.length) {
    event.preventDefault();
    state.active = (state.active + step + state.suggestions.length) % state.suggestions.length;
    drawSuggestions();
  }
}

function clear() {
  clearTimeout(pause);
  $("query").value = "";
  state.history = [];
  drawChips();
  closeSuggestions();
  ask();
  $("query").focus();
}

function showTab(mode) {
  document.querySelector(".columns").dataset.shown = mode;
  for (const tab of document.querySelectorAll("[data-tab]")) tab.setAttribute("aria-pressed", String(tab.dataset.tab === mode));
}

function remember({ text, history, k }) {
  const address = new URLSearchParams();
  if (text?.trim()) address.set("q", text);
  for (const docId of history ?? []) address.append("h", docId);
  if (k !== 10) address.set("k", String(k));
  const tail = address.toString();
  window.history.replaceState(null, "", tail ? `?${tail}` : window.location.pathname);
}

async function restoreQuery() {
  const address = new URLSearchParams(window.location.search);
  if (["20", "50"].includes(address.get("k"))) $("k").value = address.get("k");
  if (state.kind === "text") $("query").value = address.get("q") ?? "";
  else state.history = address.getAll("h").map((docId) => ({ doc_id: docId, title: docId }));
  drawChips();
  if ($("query").value || state.history.length) await ask();
}

function restoreTheme() {
  const kept = localStorage.getItem("theme");
  if (kept) document.documentElement.dataset.theme = kept;
}

function switchTheme() {
  const shown = document.documentElement.dataset.theme
    ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
  const next = shown === "dark" ? "light" : "dark";
  document.documentElement.dataset.theme = next;
  localStorage.setItem("theme", next);
}

function alertWith(message, kind = "error") {
  $("alert").textContent = message;
  $("alert").dataset.kind = kind;
  $("alert").hidden = !message;
}

function count(number) {
  return number.toLocaleString("en");
}

start();
