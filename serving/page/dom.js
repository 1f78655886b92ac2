// Elements from text, never from markup; and the two ways to talk to the API.

export function el(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
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

export function read(path) {
  return answer(fetch(path, { headers: { accept: "application/json" } }));
}

export function send(path, body) {
  return answer(fetch(path, { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body) }));
}

async function answer(request) {
  try {
    const response = await request;
    const body = await response.json();
    return response.ok ? { body } : { error: body.error };
  } catch {
    return { error: { code: "unreachable", message: "The server does not answer; is it still running?" } };
  }
}
