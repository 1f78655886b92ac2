// The requests behind a query: one for all columns that the served bundle answers, so that they come from one
// bundle, and one for each other bundle.

import { bodyOf, isForeign } from "./columns.js";
import { send } from "./dom.js";

let stop = new AbortController();

// Return the columns' replies, `{ pending: true }` where one is not there yet, and a promise that all are there.
// Requests of an earlier query are given up.
export function askAll(asked, shown) {
  giveUp();
  const replies = shown.map(() => ({ pending: true }));
  const places = shown.map((_, place) => place);
  const own = places.filter((place) => !isForeign(shown[place]));
  const alone = own.length > 1 ? places.filter((place) => !own.includes(place)) : places;
  const requests = alone.map(async (place) => {
    replies[place] = await ask({ ...asked, ...bodyOf(shown[place]) });
  });
  if (own.length > 1) requests.push(askTogether(asked, own, shown, replies));
  return { replies, all: Promise.all(requests) };
}

export function giveUp() {
  stop.abort();
  stop = new AbortController();
}

async function askTogether({ text, history, ...common }, places, shown, replies) {
  const reply = await ask({ ...common, queries: places.map((place) => ({ text, history, ...bodyOf(shown[place]) })) });
  places.forEach((place, number) => {
    const result = reply.body?.results[number];
    if (!result) replies[place] = reply;
    else replies[place] = result.error ? { error: result.error } : { body: result };
  });
}

function ask(body) {
  return send("v1/search", { ...body, with_documents: true }, stop.signal);
}
