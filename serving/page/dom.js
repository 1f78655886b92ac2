// Elements from text, never from markup; and the two ways to talk to the API.

const SVG = "http://www.w3.org/2000/svg";

export const $ = (id) => document.getElementById(id);

export function el(name, attributes = {}, ...children) {
  return filled(document.createElement(name), attributes, children);
}

export function svg(name, attributes = {}, ...children) {
  return filled(document.createElementNS(SVG, name), attributes, children);
}

function filled(element, attributes, children) {
  for (const [key, value] of Object.entries(attributes)) {
    if (typeof value === "function") element.addEventListener(key, value);
    else if (value !== null && value !== undefined && value !== false) element.setAttribute(key, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined && child !== ""));
  return element;
}

// The text in pieces, those that match a query's words inside <mark>.
export function highlighted(text, terms) {
  const words = terms.filter(Boolean).map((term) => term.replace(/[.*+?^${}()|[\]\\]/g, "\\$&"));
  if (!words.length) return [text];
  const wordy = "[\\p{L}\\p{N}\\p{M}]";
  const han = /[\p{Script=Han}\p{Script=Hiragana}\p{Script=Katakana}]/u;
  const whole = words.map((word) => (han.test(word) ? word : `(?<!${wordy})${word}(?!${wordy})`));
  const pieces = text.split(new RegExp(`(${whole.sort((a, b) => b.length - a.length).join("|")})`, "giu"));
  return pieces.map((piece, place) => (place % 2 ? el("mark", {}, piece) : piece));
}

export function read(path, method = "GET") {
  return answer(fetch(path, { method, headers: headers() }));
}

export function send(path, body, signal) {
  // what is tried out here is no traffic of users
  const sent = { ...headers(), "content-type": "application/json", "x-query-log": "off" };
  return answer(fetch(path, { method: "POST", headers: sent, body: JSON.stringify(body), signal }));
}

export function keep(key) {
  sessionStorage.setItem("key", key);
}

// Whether there was a key to forget.
export function forget() {
  const kept = sessionStorage.getItem("key") !== null;
  sessionStorage.removeItem("key");
  return kept;
}

export function count(number) {
  return number.toLocaleString("en");
}

// `counted(1, "document")` is "1 document", `counted(2000, "document")` is "2,000 documents".
export function counted(number, noun) {
  return `${count(number)} ${noun}${number === 1 ? "" : "s"}`;
}

export function pathOf(docId) {
  return docId.split("/").map(encodeURIComponent).join("/");
}

function headers() {
  const key = sessionStorage.getItem("key");
  return key ? { accept: "application/json", authorization: `Bearer ${key}` } : { accept: "application/json" };
}

async function answer(request) {
  try {
    const response = await request;
    const body = response.status === 204 ? null : await response.json();
    return response.ok ? { body } : { error: { ...body.error, status: response.status } };
  } catch {
    return { error: { code: "unreachable", message: "The server does not answer; is it still running?", status: 0 } };
  }
}
