// The page: one query, several rankings beside each other. All text from the catalogue enters the document as
// text nodes, never as markup.

import { askAll, giveUp } from "./asking.js";
import { showBundles } from "./bundles.js";
import * as columns from "./columns.js";
import { open } from "./detail.js";
import { $, counted, el, forget, keep, read } from "./dom.js";
import * as past from "./history.js";
import { begin, judge, load, permit, whenRefused } from "./judge.js";
import { onKeyInResults, toResults } from "./keyboard.js";
import { restoreTheme, switchTheme } from "./theme.js";

const TYPING_PAUSE_MS = 60;
const SLOW_MS = 250; // results that take longer are dimmed meanwhile; every frame of a fade costs what a search does
const PATIENCE_MS = 600;
const LOOK_MS = 20_000; // between two looks whether the champion could be loaded

const state = { kind: null, request: 0, asking: null, bundle: null, query: null, standing: "" };
let pause = 0;

async function start() {
  restoreTheme();
  listen();
  await connect();
}

// Everything that the first search does not need comes after it.
async function connect() {
  const reply = await read("v1/bundle");
  if (reply.error) return reply.error.status === 401 ? askForKey() : wait(reply.error);
  $("key-form").hidden = true;
  state.kind = reply.body.query_inputs.includes("text") ? "text" : "history";
  if (state.kind === "text") permit();
  else { past.prepare(); document.documentElement.classList.add("no-judging"); }
  showBundle(reply.body);
  welcome(reply.body);
  const asked = new URLSearchParams(window.location.search).getAll("c");
  const names = columns.wanted(asked);
  const foreign = names.some(columns.isForeign);
  const listed = foreign ? await others() : [];
  const dropped = columns.restore(names, listed ?? names.filter(columns.isForeign)).filter((one) => one !== reply.body.bundle_id);
  columns.draw(ask);
  $("query").disabled = false;
  const idle = [document.body, $("key")].includes(document.activeElement);
  if (idle && matchMedia("(hover: hover)").matches) $("query").focus();
  await restoreQuery();
  if (asked.length && dropped.length && $("alert").hidden) alertWith(`This address asks for ${dropped.join(" and ")}, which cannot be compared here.`, "warn");
  if (!foreign) columns.offer(await others() ?? []);
  return undefined;
}

// What is served changes while a page stays open.
async function look() {
  if (document.hidden || !state.bundle) return;
  const { body } = await read("v1/bundle");
  if (body) showStatus(body); // the next search takes over the rest of another bundle
}

function wait({ code, message }) {
  setStatus("down", code === "not_ready" ? "no bundle is served yet" : "no answer");
  $("empty-title").textContent = code === "not_ready" ? "Nothing is served yet" : "The server does not answer";
  $("empty-text").textContent = message;
  setTimeout(connect, 2000);
}

function askForKey() {
  const wrong = forget();
  setStatus("down", "needs a key");
  $("empty-text").textContent = "The server answers whoever shows a key that it knows.";
  $("key-error").textContent = wrong ? "That key is not accepted. Check it and try again." : "";
  $("key").setAttribute("aria-invalid", String(wrong));
  $("key-form").hidden = false;
  $("key").focus();
  $("key").select();
}

// Show the store's bundles; return those that may be a column: sound ones that answer the same kind of query. Nothing
// is returned where there is no list.
async function others() {
  const listed = await showBundles(state.bundle, compare);
  return listed?.filter((one) => !one.damage && !one.served && one.query_inputs.includes(state.kind)).map((one) => one.bundle_id);
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
  showStatus(bundle);
}

function showStatus(bundle) {
  setStatus(bundle.refused ? "warn" : "ready",
    el("code", {}, bundle.bundle_id.slice(0, 8)), el("span", { class: "more" }, ` · ${counted(bundle.documents, "document")}`));
  $("status").title = `bundle ${bundle.bundle_id}, loaded ${bundle.loaded_at}, ${bundle.index}`;
  const before = state.standing;
  state.standing = bundle.refused ? `The champion could not be loaded: ${bundle.refused.message}` : "";
  if ($("alert").hidden || $("alert").textContent === before) alertWith("");
}

function welcome(bundle) {
  const texts = state.kind === "text";
  $("query").placeholder = texts ? "Type a query" : "Find a title to add to the history";
  $("empty-title").textContent = texts
    ? "See what the towers find, and what words alone find"
    : "Pick what somebody clicked, see what comes next";
  $("empty-text").textContent = texts
    ? `Type what a person would type, or try one of these. ${counted(bundle.documents, "document")} ${bundle.documents === 1 ? "is" : "are"} searched.`
    : `Search titles, choose a few, and the towers recommend from ${counted(bundle.documents, "document")}.`;
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
  const shown = [...columns.columns.shown];
  const key = JSON.stringify([asked, shown]);
  if (key === state.asking) return;
  const number = ++state.request;
  state.asking = empty(asked) ? null : key;
  if (empty(asked)) {
    giveUp();
    remember(asked);
    alertWith("");
    showEmpty();
    return;
  }
  const started = performance.now();
  const { replies, all } = askAll(asked, shown);
  alertWith("");
  busy(true);
  const slow = setTimeout(() => $("columns").classList.add("slow"), SLOW_MS);
  // a bundle that is opened first keeps its own column waiting, not the others
  await Promise.race([all, new Promise((done) => setTimeout(done, PATIENCE_MS))]);
  if (number === state.request && replies.some((reply) => reply.pending) && replies.some((reply) => reply.body)) {
    showResults(asked, replies, performance.now() - started);
  }
  await all;
  clearTimeout(slow);
  if (number !== state.request) return;
  state.asking = null;
  busy(false);
  if (replies.every((reply) => reply.error)) refuse(replies[0].error);
  else showResults(asked, replies, performance.now() - started);
  afterPainting(() => {
    if (number !== state.request) return;
    remember(asked);
    if (asked.text !== undefined) load();
  });
  const own = replies.find((reply, place) => reply.body && !columns.isForeign(shown[place]));
  if (own && own.body.bundle_id !== state.bundle.bundle_id) await connect();
}

function refuse({ status, message }) {
  showEmpty(true);
  if (status === 401) askForKey();
  else alertWith(message);
}

function busy(on) {
  if (on) $("results").setAttribute("aria-busy", "true");
  else $("results").removeAttribute("aria-busy");
  if (!on) $("columns").classList.remove("slow");
}

function showEmpty(quiet = false) {
  $("results").hidden = true;
  $("empty").hidden = quiet;
  busy(false);
}

function showResults(asked, replies, roundTrip) {
  state.query = asked;
  if (asked.text !== undefined) begin(asked.text);
  $("empty").hidden = true;
  $("results").hidden = false;
  const ranks = columns.fill(replies, {
    judging: state.kind === "text",
    // of a history's many words nearly every document has some; they explain only what BM25 found
    terms: (column) => state.kind === "text" || column === "bm25",
    open: (hit, column) => open(hit, column, state.query),
  });
  const waiting = replies.some((reply) => reply.pending);
  const answered = ranks.filter((_, place) => replies[place].body);
  const shared = [...answered[0].keys()].filter((docId) => answered.every((other) => other.has(docId))).length;
  const most = Math.max(...answered.map((one) => one.size));
  const notes = new Set(replies.flatMap((reply) => reply.body?.notes ?? []));
  $("summary").replaceChildren(
    waiting || answered.length < 2 ? "" : el("span", {}, el("b", {}, `${shared} of ${most}`), answered.length === 2 ? " in both" : ` in all ${answered.length}`),
    waiting ? el("span", {}, "waiting for a bundle to be opened…") : el("span", {}, el("b", {}, `${Math.round(roundTrip)} ms`), " for all answers"),
    ...[...notes].map((note) => el("span", {}, note)));
  $("summary").dataset.ms = roundTrip.toFixed(1);
}

// Address and judgments are late enough once the results are seen.
function afterPainting(then) {
  requestAnimationFrame(() => setTimeout(then));
}

// --- keyboard, address -------------------------------------------------------------------------------

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
  setInterval(look, LOOK_MS);
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

// Say what is wrong; with nothing to say, what stays wrong meanwhile.
function alertWith(message, kind = "error") {
  const text = message || state.standing;
  if ($("alert").textContent !== text) $("alert").textContent = text;
  $("alert").dataset.kind = message ? kind : "warn";
  $("alert").hidden = !text;
}

start();
