// The page: one query, several rankings beside each other. All text from the catalogue enters the document as
// text nodes, never as markup.

import { showBundles } from "./bundles.js";
import * as columns from "./columns.js";
import { open } from "./detail.js";
import { $, count, el, keep, read, send } from "./dom.js";
import * as past from "./history.js";
import { judge, load, whenRefused } from "./judge.js";
import { onKeyInResults, toResults } from "./keyboard.js";

const TYPING_PAUSE_MS = 150;
const PATIENCE_MS = 600;

const state = { kind: null, request: 0, bundle: null, query: null };
let pause = 0;

async function start() {
  restoreTheme();
  listen();
  await connect();
}

async function connect() {
  const reply = await read("v1/bundle");
  $("key-form").hidden = reply.error?.status !== 401;
  if (reply.error) {
    setStatus("down", reply.error.code === "not_ready" ? "no bundle is served yet" : "no answer");
    $("empty-text").textContent = reply.error.message;
    if (reply.error.status !== 401) setTimeout(connect, 2000);
    return;
  }
  state.kind = reply.body.query_inputs.includes("text") ? "text" : "history";
  showBundle(reply.body);
  welcome(reply.body);
  const listed = await showBundles(reply.body, compare);
  const asked = new URLSearchParams(window.location.search).getAll("c");
  columns.restore(asked, comparable(listed));
  columns.draw(ask);
  $("query").disabled = false;
  await restoreQuery();
  if (matchMedia("(hover: hover)").matches) $("query").focus();
}

// Bundles that may be a column: sound ones that answer the same kind of query.
function comparable(listed) {
  return listed.filter((one) => !one.damage && !one.served && one.query_inputs.includes(state.kind)).map((one) => one.bundle_id);
}

function compare(bundleId) {
  const shown = columns.columns.shown;
  if (!shown.includes(bundleId)) columns.change(shown.length < 4 ? shown.length : 3, bundleId);
  columns.draw(ask);
  columns.activate(bundleId);
  window.scrollTo({ top: 0 });
  if (empty(query())) $("query").focus();
  ask();
}

function showBundle(bundle) {
  state.bundle = bundle;
  setStatus(bundle.refused ? "warn" : "ready",
    el("code", {}, bundle.bundle_id.slice(0, 8)), el("span", { class: "more" }, ` · ${count(bundle.documents)} documents`));
  $("status").title = `bundle ${bundle.bundle_id}, loaded ${bundle.loaded_at}, ${bundle.index}`;
  if (bundle.refused) alertWith(`The champion could not be loaded: ${bundle.refused.message}`, "warn");
}

function welcome(bundle) {
  const texts = state.kind === "text";
  $("query").placeholder = texts ? "Type a query" : "Find a title to add to the history";
  $("empty-title").textContent = texts
    ? "See what the towers find, and what words alone find"
    : "Pick what somebody clicked, see what comes next";
  $("empty-text").textContent = texts
    ? `Type what a person would type, or try one of these. ${count(bundle.documents)} documents are searched.`
    : `Search titles, choose a few, and the towers recommend from ${count(bundle.documents)} documents.`;
  $("examples").hidden = bundle.examples.length === 0;
  $("examples").replaceChildren(...bundle.examples.map((example) => {
    const label = example.text ?? example.history.map((document) => document.title.trim() || document.doc_id).join(" · ");
    return el("li", {}, el("button", { type: "button", title: label, click: () => tryOut(example) }, label));
  }));
}

function tryOut(example) {
  if (example.text) $("query").value = example.text;
  else past.replace(example.history.map((document) => ({ doc_id: document.doc_id, title: document.title.trim() || document.doc_id })));
  ask();
}

function setStatus(kind, ...content) {
  $("status").dataset.state = kind;
  $("status-text").replaceChildren(...content);
}

// --- asking -------------------------------------------------------------------------------------------------

function query() {
  const k = Number($("k").value);
  if (state.kind === "text") return { text: $("query").value, k };
  return { history: past.ids(), k, exclude: past.ids() };
}

function empty(asked) {
  return state.kind === "text" ? !asked.text.trim() : asked.history.length === 0;
}

async function ask() {
  clearTimeout(pause);
  columns.draw(ask);
  const asked = query();
  const number = ++state.request;
  remember(asked);
  alertWith("");
  if (empty(asked)) return showEmpty();
  $("results").setAttribute("aria-busy", "true");
  const started = performance.now();
  const shown = [...columns.columns.shown];
  if (asked.text !== undefined) load(asked.text);
  const replies = shown.map(() => ({ pending: true }));
  const all = Promise.all(shown.map(async (column, place) => {
    replies[place] = await send("v1/search", { ...asked, ...columns.bodyOf(column), with_documents: true });
  }));
  // a bundle that is opened first keeps its own column waiting, not the others
  await Promise.race([all, new Promise((done) => setTimeout(done, PATIENCE_MS))]);
  if (number === state.request && replies.some((reply) => reply.pending) && replies.some((reply) => reply.body)) {
    state.query = asked;
    showResults(replies, performance.now() - started);
  }
  await all;
  if (number !== state.request) return;
  $("results").removeAttribute("aria-busy");
  if (replies.every((reply) => reply.error)) {
    showEmpty(true);
    return alertWith(replies[0].error.message);
  }
  state.query = asked;
  showResults(replies, performance.now() - started);
  const own = replies.find((reply, place) => reply.body && columns.bodyOf(shown[place]).mode && !columns.bodyOf(shown[place]).bundle_id);
  if (own && own.body.bundle_id !== state.bundle.bundle_id) await connect();
}

function showEmpty(quiet = false) {
  $("results").hidden = true;
  $("empty").hidden = quiet;
  $("results").removeAttribute("aria-busy");
}

function showResults(replies, roundTrip) {
  $("empty").hidden = true;
  $("results").hidden = false;
  const ranks = columns.fill(replies, {
    judging: state.kind === "text",
    // of a history's many words nearly every document has some; they explain only what BM25 found
    terms: (column) => state.kind === "text" || column === "bm25",
    open: (hit, column) => open(hit, column, state.query),
  });
  const waiting = replies.some((reply) => reply.pending);
  const shared = [...ranks[0].keys()].filter((docId) => ranks.slice(1).every((other) => other.has(docId))).length;
  const most = Math.max(...ranks.map((one) => one.size));
  const bundles = replies.map((reply, place) => (columns.bodyOf(columns.columns.shown[place]).bundle_id ? null : reply.body?.bundle_id));
  const mixed = new Set(bundles.filter(Boolean)).size > 1 ? ["the bundle changed meanwhile"] : [];
  const notes = [...new Set([...replies.flatMap((reply) => reply.body?.notes ?? []), ...mixed])];
  $("summary").replaceChildren(
    waiting ? "" : el("span", {}, el("b", {}, `${shared} of ${most}`), ranks.length === 2 ? " in both" : ` in all ${ranks.length}`),
    waiting ? el("span", {}, "waiting for a bundle to be opened…") : el("span", {}, el("b", {}, `${Math.round(roundTrip)} ms`), " for all answers"),
    ...notes.map((note) => el("span", {}, note)));
  $("summary").dataset.ms = roundTrip.toFixed(1);
}

// --- keyboard, address, theme -------------------------------------------------------------------------------

function listen() {
  past.listen(ask, alertWith);
  whenRefused(alertWith);
  $("form").addEventListener("submit", (event) => { event.preventDefault(); onEnter(); });
  $("key-form").addEventListener("submit", (event) => { event.preventDefault(); keep($("key").value.trim()); connect(); });
  $("query").addEventListener("input", () => {
    clearTimeout(pause);
    pause = setTimeout(state.kind === "text" ? ask : past.suggest, TYPING_PAUSE_MS);
  });
  $("query").addEventListener("keydown", onKeyInBox);
  $("query").addEventListener("blur", () => past.close());
  $("k").addEventListener("change", ask);
  $("theme").addEventListener("click", switchTheme);
  document.addEventListener("keydown", (event) => {
    const typing = event.target instanceof HTMLInputElement || event.target instanceof HTMLSelectElement;
    if ($("detail").open || typing || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "/") { event.preventDefault(); $("query").focus(); $("query").select(); }
    else if (event.key === "Escape") clear();
    else onKeyInResults(event, { judge: state.kind === "text" ? judge : null });
  });
}

function onEnter() {
  clearTimeout(pause);
  if (state.kind === "history" && past.take()) return undefined;
  if (state.kind === "history" && $("query").value.trim()) return past.suggest();
  return ask();
}

function onKeyInBox(event) {
  if (event.key === "Escape") {
    event.preventDefault();
    if (!$("suggestions").hidden) return past.close();
    return clear();
  }
  if (state.kind === "history" && event.key === "Backspace" && !$("query").value && past.history.documents.length) return past.removeLast();
  const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
  if (step && past.move(step)) event.preventDefault();
  else if (event.key === "ArrowDown" && !$("results").hidden) { event.preventDefault(); toResults(); }
  return undefined;
}

function clear() {
  $("query").value = "";
  past.close();
  past.replace([]);
  ask();
  $("query").focus();
}

function remember({ text, history, k }) {
  const address = new URLSearchParams();
  if (text?.trim()) address.set("q", text);
  for (const docId of history ?? []) address.append("h", docId);
  if (k !== 10) address.set("k", String(k));
  const { shown } = columns.columns;
  if (shown.join() !== "dense,bm25") for (const column of shown) address.append("c", column);
  const tail = address.toString();
  window.history.replaceState(null, "", tail ? `?${tail}` : window.location.pathname);
}

async function restoreQuery() {
  const address = new URLSearchParams(window.location.search);
  if (["20", "50"].includes(address.get("k"))) $("k").value = address.get("k");
  if (state.kind === "text") $("query").value ||= address.get("q") ?? "";
  else if (!past.ids().length) past.replace(address.getAll("h").map((docId) => ({ doc_id: docId, title: docId })));
  if (!empty(query())) await ask();
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

start();
