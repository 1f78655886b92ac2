// Thumbs, kept by the server as judgments that evaluation reads, and shown again with the same query.

import { el, read, send } from "./dom.js";

const WORDS = ["not relevant", "a little relevant", "relevant", "perfect"];
const state = { query: "", grades: new Map(), failed: () => {} };

export function whenRefused(tell) {
  state.failed = tell;
}

// Fetch what was said about a query before; cards that are drawn already take it on.
export async function load(query) {
  if (query !== state.query) state.grades = new Map();
  state.query = query;
  if (!query.trim()) return;
  const reply = await read(`v1/judgments?query=${encodeURIComponent(query)}`);
  if (reply.error || state.query !== query) return;
  state.grades = new Map(reply.body.judgments.map(({ doc_id: docId, grade }) => [docId, grade]));
  for (const part of document.querySelectorAll(".thumbs")) show(part);
}

// `bundle` is the id of another bundle than the served one, where the document is a result of that.
export function thumbs(docId, title, bundle) {
  const button = (thumb, mark, word) => el("button", {
    type: "button", class: `judge ${thumb}`, "data-thumb": thumb, "aria-pressed": "false", tabindex: "-1",
    "aria-label": `${word}: ${title || docId}`, title: word, click: () => judge(docId, thumb, bundle),
  }, mark);
  const part = el("span", { class: "thumbs", "data-doc": docId, "data-bundle": bundle, role: "group", "aria-label": "Judge" },
    button("up", "👍", "Good"), button("down", "👎", "Bad"));
  show(part);
  return part;
}

export async function judge(docId, thumb, bundle) {
  const query = state.query;
  const before = state.grades.get(docId);
  state.grades.set(docId, thumb === "up" ? 2 : 0);
  redraw(docId);
  const reply = await send("v1/judgments", { query, doc_id: docId, thumb, ...(bundle ? { bundle_id: bundle } : {}) });
  if (!reply.error || state.query !== query) return;
  if (before === undefined) state.grades.delete(docId);
  else state.grades.set(docId, before);
  redraw(docId);
  state.failed(`Your judgment was not kept: ${reply.error.message}`);
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
