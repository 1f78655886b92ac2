// A query made of titles: chips of what somebody clicked, and suggestions to add to them.

import { $, el, highlighted, send } from "./dom.js";

export const history = { documents: [], suggestions: [], active: -1 };

let number = 0;
let changed = () => {};
let refused = () => {};

export function listen(onChange, onRefusal) {
  changed = onChange;
  refused = onRefusal;
}

export function ids() {
  return history.documents.map((document) => document.doc_id);
}

export function replace(documents) {
  history.documents = documents;
  draw();
}

export async function suggest() {
  const text = $("query").value;
  const asked = ++number;
  if (!text.trim()) return close();
  const reply = await send("v1/search", { text, mode: "bm25", k: 8, with_documents: true });
  if (asked !== number) return;
  if (reply.error) {
    close();
    return refused(reply.error.message);
  }
  history.suggestions = reply.body.hits.filter((hit) => !ids().includes(hit.doc_id));
  history.active = history.suggestions.length ? 0 : -1;
  drawSuggestions();
}

// Typing leads to the suggestions, and screen readers are told so.
export function prepare() {
  const attributes = { role: "combobox", "aria-controls": "suggestions", "aria-autocomplete": "list", "aria-expanded": "false" };
  for (const [key, value] of Object.entries(attributes)) $("query").setAttribute(key, value);
}

export function close() {
  number += 1;
  history.suggestions = [];
  history.active = -1;
  expand(false);
}

export function move(step) {
  if (!history.suggestions.length) return false;
  history.active = (history.active + step + history.suggestions.length) % history.suggestions.length;
  drawSuggestions();
  return true;
}

export function take() {
  if (history.active < 0) return false;
  add(history.suggestions[history.active]);
  return true;
}

export function removeLast() {
  history.documents.pop();
  draw();
  changed();
}

function add(hit) {
  history.documents.push({ doc_id: hit.doc_id, title: hit.title.trim() || hit.doc_id });
  $("query").value = "";
  close();
  draw();
  changed();
}

function drawSuggestions() {
  const items = history.suggestions.map((hit, place) => el("li", {
    role: "option", id: `suggestion-${place}`, "aria-selected": String(place === history.active),
    mousedown: (event) => { event.preventDefault(); add(hit); },
  }, el("span", {}, ...highlighted(hit.title.trim() || hit.doc_id, hit.matched_terms ?? []))));
  $("suggestions").replaceChildren(...(items.length ? items : [el("li", { class: "none", role: "option", "aria-disabled": "true", "aria-selected": "false" }, "No title has these words")]));
  expand(true);
}

function expand(open) {
  $("suggestions").hidden = !open;
  if (!$("query").hasAttribute("role")) return;
  $("query").setAttribute("aria-expanded", String(open));
  if (open && history.active >= 0) $("query").setAttribute("aria-activedescendant", `suggestion-${history.active}`);
  else $("query").removeAttribute("aria-activedescendant");
}

function draw() {
  $("chips").hidden = history.documents.length === 0;
  $("chips").replaceChildren(...history.documents.map((document, place) => el("li", {},
    el("span", { title: document.title }, document.title),
    el("button", {
      type: "button", "aria-label": `Remove ${document.title}`,
      click: () => { history.documents.splice(place, 1); draw(); changed(); $("query").focus(); },
    }, "✕"))));
}
