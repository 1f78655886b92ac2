// Thumbs, kept by the server as judgments that evaluation reads, and shown again with the same query.

import { $, el, read, send, svg } from "./dom.js";

const WORDS = ["not relevant", "a little relevant", "relevant", "perfect"];
const READ_ONLY = "Your key may read and not judge; judging needs an admin key.";
const HAND = "M7 9.2 9.6 3.4c1.5 0 2.2 1 2 2.3L11.2 8h4.1c1.1 0 1.8 1 1.5 2l-1.7 5.5c-.2.9-1 1.5-1.9 1.5H7zM3.2 9.2H7V17H3.2z";
const state = { query: "", grades: new Map(), failed: () => {}, allowed: true };

export function whenRefused(tell) {
  state.failed = tell;
}

// Ask whether whoever uses the page may judge; thumbs become marks of what others said where not.
export async function permit() {
  const { error } = await read("v1/judgments", "OPTIONS");
  state.allowed = error?.status !== 403;
  document.documentElement.classList.toggle("no-judging", !state.allowed);
  for (const button of document.querySelectorAll(".judge")) button.disabled = !state.allowed;
  $("read-only").textContent = state.allowed ? "" : READ_ONLY;
  $("read-only").hidden = state.allowed;
}

// Judge results of this query from now on.
export function begin(query) {
  if (query !== state.query) state.grades = new Map();
  state.query = query;
}

// Fetch what was said about the query before; cards that are drawn already take it on.
export async function load() {
  const { query } = state;
  const reply = await read(`v1/judgments?query=${encodeURIComponent(query)}`);
  if (reply.error || state.query !== query) return;
  // what was judged meanwhile is later
  state.grades = new Map([...reply.body.judgments.map(({ doc_id: docId, grade }) => [docId, grade]), ...state.grades]);
  for (const part of document.querySelectorAll(".thumbs")) show(part);
}

// `bundle` is the id of another bundle than the served one, where the document is a result of that.
export function thumbs(docId, title, bundle) {
  const button = (thumb, word) => el("button", {
    type: "button", class: `judge ${thumb}`, "data-thumb": thumb, "aria-pressed": "false", tabindex: "-1",
    "aria-label": `${word}: ${title || docId}`, title: state.allowed ? word : READ_ONLY, disabled: !state.allowed,
    click: () => judge(docId, thumb, bundle),
  }, svg("svg", { viewBox: "0 0 20 20", width: 18, height: 18, "aria-hidden": "true" }, svg("path", { d: HAND })));
  const part = el("span", { class: "thumbs", "data-doc": docId, "data-bundle": bundle, role: "group", "aria-label": "Judge" },
    button("up", "Good"), button("down", "Bad"));
  show(part);
  return part;
}

export async function judge(docId, thumb, bundle) {
  if (!state.allowed) return state.failed(READ_ONLY);
  const query = state.query;
  const before = state.grades.get(docId);
  state.grades.set(docId, thumb === "up" ? 2 : 0);
  redraw(docId);
  const reply = await send("v1/judgments", { query, doc_id: docId, thumb, ...(bundle ? { bundle_id: bundle } : {}) });
  if (!reply.error || state.query !== query) return undefined;
  if (before === undefined) state.grades.delete(docId);
  else state.grades.set(docId, before);
  redraw(docId);
  return state.failed(`Your judgment was not kept: ${reply.error.message}`);
}

function redraw(docId) {
  for (const part of document.querySelectorAll(".thumbs")) if (part.dataset.doc === docId) show(part);
}

function show(part) {
  const grade = state.grades.get(part.dataset.doc);
  for (const button of part.children) {
    const up = button.dataset.thumb === "up";
    button.setAttribute("aria-pressed", String(grade !== undefined && up === grade > 0));
  }
  part.title = grade === undefined ? "" : `judged ${WORDS[grade]} (${grade})`;
}
