// One found document: rank, title, score, text, a few of its fields, its picture, and two thumbs.

import { el, highlighted } from "./dom.js";
import { thumbs } from "./judge.js";

const FIELDS_SHOWN = 4;

// `context`: column, bundle (where it is not the served one), mark (a badge), terms (whether matched words are
// marked), judging, first (whether Tab reaches its title; arrows lead on), inside (a dialog, where Tab reaches all
// titles), open (shows details).
export function card(hit, context) {
  const terms = context.terms(context.column) ? hit.matched_terms ?? [] : [];
  const title = hit.title.trim();
  const lexical = context.column === "bm25";
  const score = hit.score.toFixed(lexical ? 2 : 4);
  const scored = lexical ? "BM25 score" : context.column === "hybrid" ? "fused score" : "similarity";
  const item = el("li", {
    class: "hit", "data-doc": hit.doc_id,
    mouseenter: () => twins(hit.doc_id, true), mouseleave: () => twins(hit.doc_id, false),
    focusin: () => twins(hit.doc_id, true), focusout: () => twins(hit.doc_id, false),
  },
  el("span", { class: "rank" }, String(hit.rank)),
  el("button", {
    class: title ? "title" : "title untitled", title, type: "button", tabindex: context.inside || context.first ? "0" : "-1",
    "aria-haspopup": "dialog", "aria-keyshortcuts": context.judging ? "+ -" : null, click: () => context.open(hit, context.column),
  },
    ...highlighted(title || "untitled", terms)),
  el("span", { class: "score", title: scored }, score),
  picture(hit.image, "thumb"),
  hit.text.trim() ? el("span", { class: "text" }, ...highlighted(hit.text, terms)) : "",
  chips(hit.fields),
  el("span", { class: "foot" }, context.mark ?? "", el("code", { title: hit.doc_id }, hit.doc_id),
    context.judging ? thumbs(hit.doc_id, title, context.bundle) : ""));
  return item;
}

// Pictures come from this server or over https, as the page's policy has it; others are left out.
export function picture(address, kind) {
  if (!address) return "";
  let url;
  try {
    url = new URL(address, document.baseURI);
  } catch {
    return "";
  }
  if (url.origin !== window.location.origin && url.protocol !== "https:") return "";
  return el("img", {
    class: kind, src: url.href, alt: "", loading: "lazy", decoding: "async", referrerpolicy: "no-referrer",
    error: (event) => event.target.remove(),
  });
}

export function shown(value) {
  if (Array.isArray(value)) return value.join(", ");
  return typeof value === "number" && !Number.isInteger(value) ? String(Number(value.toPrecision(6))) : String(value);
}

function chips(fields) {
  const entries = Object.entries(fields ?? {}).filter(([, value]) => shown(value) && shown(value).length <= 40).slice(0, FIELDS_SHOWN);
  if (!entries.length) return "";
  return el("span", { class: "fields" }, ...entries.map(([key, value]) =>
    el("span", { title: key }, el("i", {}, key), " ", shown(value))));
}

function twins(docId, on) {
  const cards = [...document.querySelectorAll("#columns .hit")].filter((item) => item.dataset.doc === docId);
  for (const item of cards) item.classList.toggle("twin", on && cards.length > 1);
}
