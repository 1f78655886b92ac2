// Documentation of the API, drawn from /openapi.json alone.

import { el, read } from "./dom.js";
import { restoreTheme, switchTheme } from "./theme.js";

restoreTheme();
document.getElementById("theme").addEventListener("click", switchTheme);

const { body: spec, error } = await read("openapi.json");
document.getElementById("about").textContent = error
  ? error.message
  : `${spec.info.description} A refusal is {"error": {"code", "message"}}; below /v2, {"error": message} as that protocol has it.`;
if (spec) {
  const routes = Object.entries(spec.paths).flatMap(([path, methods]) =>
    Object.entries(methods).map(([method, route]) => article(path, method, route)));
  document.getElementById("routes").replaceChildren(...routes);
}

function article(path, method, route) {
  const parts = [el("h2", {}, el("span", {}, method.toUpperCase()), path), el("p", {}, ...prose(route.description))];
  if (route.parameters?.length) {
    parts.push(el("h3", {}, "Parameters"), table(route.parameters.map((entry) =>
      [entry.name, `${kind(entry.schema)}, ${entry.in}`, prose(entry.description ?? entry.schema.description)])));
  }
  const asked = route.requestBody?.content["application/json"].schema;
  if (asked) parts.push(el("h3", {}, "Body"), fields(asked), el("h3", {}, "Example"), el("pre", {}, example(path, asked)));
  const answered = route.responses["200"]?.content?.["application/json"]?.schema;
  if (answered) parts.push(el("h3", {}, "Reply"), fields(answered));
  const refusals = Object.entries(route.responses).filter(([status]) => status !== "200");
  parts.push(el("h3", {}, "Refusals"), table(refusals.map(([status, entry]) => [status, "", prose(entry.description)])));
  return el("article", {}, ...parts);
}

function example(path, schema) {
  const body = JSON.stringify(resolve(schema).examples?.[0] ?? {});
  return `curl -s ${new URL(path.slice(1), document.baseURI)} -H 'content-type: application/json' -d '${body}'`;
}

function fields(schema) {
  return table(Object.entries(resolve(schema).properties ?? {}).map(([name, entry]) => {
    const standard = entry.default === undefined || entry.default === null ? "" : `, default ${JSON.stringify(entry.default)}`;
    return [name, kind(entry) + standard, prose(entry.description ?? resolve(entry).description)];
  }));
}

function resolve(schema) {
  return schema.$ref ? spec.components.schemas[schema.$ref.split("/").pop()] : schema;
}

function kind(schema) {
  if (schema.anyOf) return schema.anyOf.map(kind).filter(Boolean).join(" or ");
  if (schema.$ref) return schema.$ref.split("/").pop();
  if (schema.enum) return schema.enum.join(" | ");
  if (schema.const !== undefined) return JSON.stringify(schema.const);
  if (schema.type === "array") return `list of ${kind(schema.items)}`;
  return schema.type ?? "";
}

// What stands between backticks is code.
function prose(text = "") {
  return text.split("`").map((part, place) => (place % 2 ? el("code", {}, part) : part));
}

function table(rows) {
  return el("table", {}, el("tbody", {}, ...rows.map(([name, ...cells]) =>
    el("tr", {}, el("th", { scope: "row" }, name), ...cells.map((cell) => el("td", {}, ...[cell].flat()))))));
}
