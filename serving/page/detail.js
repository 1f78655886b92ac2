// A document in full: its fields, how it was found, and what is near it.

import { card, picture, shown } from "./card.js";
import { bodyOf, name } from "./columns.js";
import { $, el, pathOf, read, send } from "./dom.js";

let asked = 0;

// `query` is what the columns were asked; null where the document was reached from another one.
export async function open(hit, column, query) {
  const number = ++asked;
  const others = bodyOf(column).bundle_id;
  $("detail-over").textContent = hit.doc_id;
  $("detail-title").textContent = hit.title.trim() || "untitled";
  $("detail-body").replaceChildren();
  $("near").replaceChildren();
  if (!$("detail").open) $("detail").showModal();
  $("detail").scrollTop = 0;
  $("detail-title").focus(); // the title that was chosen is gone where it stood in the list of near ones
  const [full, why, near] = await Promise.all([
    read(`v1/documents/${pathOf(hit.doc_id)}${others ? `?bundle_id=${others}` : ""}`),
    query ? send("v1/search", { ...query, ...bodyOf(column), explain: true }) : {},
    read(`v1/documents/${pathOf(hit.doc_id)}/neighbors?k=10&with_documents=true${others ? `&bundle_id=${others}` : ""}`),
  ]);
  if (number !== asked) return;
  const document = full.body ?? hit;
  $("detail-body").replaceChildren(
    picture(document.image, "large"),
    document.text.trim() ? el("p", { class: "full" }, document.text) : "",
    facts(Object.entries(document.fields ?? {}).map(([key, value]) => [key, shown(value)])),
    ...found(hit, column, why.body));
  $("near-head").textContent = `Nearest documents by ${others ? name(column) : "the towers"}`;
  const similar = { column: others ?? "dense", terms: () => false, judging: false, inside: true, open: (one) => open(one, column, null) };
  const cards = near.error
    ? [el("li", { class: "nothing" }, near.error.message)]
    : near.body.hits.map((one) => card(one, similar));
  $("near").replaceChildren(...(cards.length ? cards : [el("li", { class: "nothing" }, "There is no other document.")]));
}

function found(hit, column, reply) {
  const place = reply?.hits.findIndex((one) => one.doc_id === hit.doc_id) ?? -1;
  if (place < 0 || !reply.explanation) return [];
  const { dense, bm25, matched_terms: terms, dense_share: byTowers, bm25_share: byWords } = reply.explanation.hits[place];
  const where = (ranking, digits, depth) => (ranking ? `rank ${ranking.rank}, score ${ranking.score.toFixed(digits)}` : `not among its first ${depth}`);
  const rows = [
    ["towers", where(dense, 4, reply.explanation.dense_depth)],
    ["BM25", where(bm25, 2, reply.explanation.bm25_depth)],
    ["words in common", terms.join(", ") || "none"],
  ];
  if (byTowers !== undefined) rows.push(["fused score", `${byTowers.toFixed(5)} by rank of the towers + ${byWords.toFixed(5)} by rank of BM25`]);
  if (reply.explanation.unknown_words.length) rows.push(["in no document", reply.explanation.unknown_words.join(", ")]);
  rows.push(["index", reply.explanation.index]);
  return [el("h3", {}, `Why rank ${hit.rank} by ${name(column)}`), facts(rows)];
}

export function facts(rows) {
  if (!rows.length) return "";
  return el("dl", { class: "facts" }, ...rows.flatMap(([key, value]) => [el("dt", {}, key), el("dd", {}, value)]));
}
