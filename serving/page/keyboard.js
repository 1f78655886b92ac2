// Moving among the results: up and down the ranks, left and right between columns; + and − judge.

import { activate, columns } from "./columns.js";
import { $ } from "./dom.js";

const THUMBS = { "+": "up", 1: "up", "=": "up", "-": "down", 0: "down", "−": "down" };

export function toResults() {
  focus(cardsOf(columns.active)[0]);
}

export function onKeyInResults(event, { judge }) {
  const card = event.target.closest?.("#columns .hit");
  if (!card) {
    if (event.key === "ArrowDown" && event.target === document.body && !$("results").hidden) { event.preventDefault(); toResults(); }
    return;
  }
  const thumb = THUMBS[event.key];
  if (thumb && judge) { event.preventDefault(); judge(card.dataset.doc, thumb, card.querySelector(".thumbs")?.dataset.bundle); return; }
  const target = next(card, event.key);
  if (target === undefined) return;
  event.preventDefault();
  if (target === null) { $("query").focus(); return; }
  focus(target);
}

// The card that a key leads to; null is the query box, undefined is no move.
function next(card, key) {
  const column = card.closest(".column").dataset.column;
  const cards = cardsOf(column);
  const place = cards.indexOf(card);
  if (key === "ArrowDown") return cards[place + 1];
  if (key === "ArrowUp") return place === 0 ? null : cards[place - 1];
  const step = { ArrowLeft: -1, ArrowRight: 1 }[key];
  if (!step) return undefined;
  const beside = columns.shown[columns.shown.indexOf(column) + step];
  if (!beside) return undefined;
  const others = cardsOf(beside);
  return others[Math.min(place, others.length - 1)];
}

function cardsOf(column) {
  return [...document.querySelectorAll("#columns .column")].filter((part) => part.dataset.column === column)
    .flatMap((part) => [...part.querySelectorAll(".hit")]);
}

function focus(card) {
  if (!card) return;
  const column = card.closest(".column");
  if (column.dataset.column !== columns.active) activate(column.dataset.column);
  // Tab comes back to where the arrows left
  for (const title of column.querySelectorAll(".title")) title.tabIndex = -1;
  const title = card.querySelector(".title");
  title.tabIndex = 0;
  title.focus({ preventScroll: true });
  card.scrollIntoView({ block: "nearest" });
}
