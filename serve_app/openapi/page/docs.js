// The page that shows the OpenAPI documents of the server and of its models. Everything it shows
// comes from those documents; it sends nothing but questions for them.

import { find, make, say } from "/page/dom.js";

const METHODS = ["get", "put", "post", "delete"];
const LONGEST = 8; // values of an array that are shown; embeddings have a thousand

start();

async function start() {
  find("document").addEventListener("change", show);
  find("key-form").addEventListener("submit", async (event) => {
    event.preventDefault();
    await list(find("key").value.trim());
  });
  await list("");
  await show();
}

/** Fill the choice of documents: the server's own, and one for each model that is ready. */
async function list(key) {
  const choices = [["openapi.json", "the server"]];
  const headers = { "Content-Type": "application/json" };
  if (key) headers.Authorization = `Bearer ${key}`;
  try {
    const answer = await fetch("v2/repository/index", {
      method: "POST",
      headers,
      body: '{"ready": true}',
    });
    find("key-form").hidden = answer.status !== 401;
    if (!answer.ok && answer.status !== 401) throw new Error((await answer.json()).error);
    for (const model of answer.ok ? await answer.json() : []) {
      // Of several versions each answers below its own.
      const path = `v2/models/${encodeURIComponent(model.name)}/versions/${model.version}`;
      choices.push([`${path}/openapi.json`, `${model.name}, version ${model.version}`]);
    }
    say(find("problem"), "");
  } catch (error) {
    say(find("problem"), `The models cannot be listed: ${error.message}`);
  }
  const select = find("document");
  const chosen = select.value || decodeURIComponent(location.hash.slice(1));
  select.replaceChildren(...choices.map(([value, text]) => make("option", { value }, text)));
  if (choices.some(([value]) => value === chosen)) select.value = chosen;
}

/** Fetch the chosen document and show it. */
async function show() {
  const address = find("document").value;
  history.replaceState(null, "", `#${encodeURIComponent(address)}`);
  find("raw").href = address;
  try {
    const answer = await fetch(address);
    const body = await answer.json();
    if (find("document").value !== address) return; // another was chosen meanwhile
    if (!answer.ok) throw new Error(body.error);
    find("calls").replaceChildren(...documentParts(body));
    say(find("problem"), "");
  } catch (error) {
    find("calls").replaceChildren();
    say(find("problem"), `${address}: ${error.message}`);
  }
}

function documentParts(doc) {
  const parts = [make("h2", {}, doc.info.title), make("p", { class: "about" }, ...words(doc.info.description))];
  const where = doc.servers.map((server) => make("code", {}, server.url));
  parts.push(make("p", { class: "hint" }, "Below ", ...joined(where, " and as well below ")));
  for (const [path, methods] of Object.entries(doc.paths)) {
    for (const method of METHODS.filter((each) => each in methods)) {
      parts.push(call(doc, path, method, methods[method]));
    }
  }
  return parts;
}

function call(doc, path, method, operation) {
  const inside = make("div", { class: "inside" });
  if (operation.description) inside.append(make("p", { class: "about" }, ...words(operation.description)));
  for (const sample of operation["x-codeSamples"] ?? []) inside.append(shell(sample.source));
  if (operation.parameters) inside.append(make("h4", {}, "Parameters"), parameters(operation));
  if (operation.requestBody) inside.append(...body(doc, "Body", operation.requestBody));
  for (const [status, answer] of Object.entries(operation.responses)) {
    if (status.startsWith("2")) inside.append(...body(doc, `Answer ${status}`, answer));
  }
  inside.append(make("h4", {}, "Errors"), errors(operation.responses));
  const scope = neededScope(operation);
  return make(
    "details",
    { class: "call", id: operation.operationId },
    make(
      "summary",
      {},
      make("span", { class: "method" }, method.toUpperCase()),
      make("code", {}, path),
      make("span", { class: "what" }, operation.summary),
      scope ? make("span", { class: "scope" }, scope) : null,
    ),
    inside,
  );
}

function neededScope(operation) {
  if (!operation.security) return "";
  const isOpen = operation.security.some((each) => Object.keys(each).length === 0);
  return isOpen ? "key, where keys are configured" : "admin key";
}

function shell(source) {
  const text = source.replaceAll("http://localhost:8000", location.origin);
  const copy = make("button", { type: "button", "aria-label": "Copy the command" }, "Copy");
  copy.addEventListener("click", async () => {
    await navigator.clipboard.writeText(text);
    copy.textContent = "Copied";
  });
  const can = Boolean(navigator.clipboard); // not without HTTPS, but for localhost
  return make("div", { class: "line" }, make("pre", {}, text), can ? copy : null);
}

function parameters(operation) {
  const rows = operation.parameters.map((each) =>
    make(
      "tr",
      {},
      make("td", {}, make("code", {}, each.name)),
      make("td", {}, each.in),
      make("td", {}, short(each.schema)),
      make("td", {}, ...words(each.description)),
    ),
  );
  return table(["Name", "In", "Values", ""], rows);
}

function body(doc, title, part) {
  const parts = [make("h4", {}, title), make("p", {}, ...words(part.description))];
  const raw = [];
  for (const [type, content] of Object.entries(part.content ?? {})) {
    const examples = content.examples ?? (content.example === undefined ? {} : { "": { value: content.example } });
    const inside = Object.entries(examples).map(([name, example]) =>
      make("div", {}, name ? make("p", { class: "hint" }, example.summary ?? name) : null, json(example.value)),
    );
    if (content.schema) {
      const whole = resolved(doc, content.schema, new Set());
      inside.push(make("details", {}, make("summary", {}, "Schema"), json(whole)));
    }
    if (inside.length) parts.push(make("p", {}, make("code", {}, type)), ...inside);
    else raw.push(make("code", {}, type));
  }
  if (raw.length) parts.push(make("p", {}, ...joined(raw, ", "), ": the bytes as they are"));
  return parts;
}

function errors(responses) {
  const rows = [];
  for (const [status, answer] of Object.entries(responses)) {
    if (status.startsWith("2")) continue;
    const examples = answer.content?.["application/json"]?.examples ?? {};
    for (const [code, example] of Object.entries(examples)) {
      const cells = [status, make("code", {}, code), example.value.error];
      rows.push(make("tr", {}, ...cells.map((cell) => make("td", {}, cell))));
    }
  }
  return table(["Status", "Code", "As in"], rows);
}

function table(heads, rows) {
  const head = make("tr", {}, ...heads.map((each) => make("th", { scope: "col" }, each)));
  return make("table", {}, make("thead", {}, head), make("tbody", {}, ...rows));
}

/** Return a schema of one value in a few words. */
function short(schema) {
  const words = [schema.enum ? schema.enum.join(", ") : (schema.type ?? "")];
  if (schema.minimum !== undefined) words.push(`from ${schema.minimum}`);
  if (schema.maximum !== undefined) words.push(`to ${schema.maximum}`);
  if (schema.default !== undefined) words.push(`(${schema.default}, if left out)`);
  return words.join(" ");
}

/** Return a schema with what it refers to in its place, but nothing within itself. */
function resolved(doc, schema, inside) {
  if (Array.isArray(schema)) return schema.map((each) => resolved(doc, each, inside));
  if (schema === null || typeof schema !== "object") return schema;
  if (typeof schema.$ref === "string") {
    const name = schema.$ref.split("/").at(-1);
    if (inside.has(name)) return { $ref: schema.$ref };
    return resolved(doc, doc.components.schemas[name], new Set([...inside, name]));
  }
  return Object.fromEntries(
    Object.entries(schema).map(([key, value]) => [key, resolved(doc, value, inside)]),
  );
}

/** Show a value as JSON; of a long list of numbers only the first. */
function json(value) {
  const shown = JSON.stringify(
    value,
    (_, each) =>
      Array.isArray(each) && each.length > LONGEST && typeof each[0] === "number"
        ? [...each.slice(0, LONGEST), `... ${each.length} numbers in all`]
        : each,
    2,
  );
  return make("pre", { tabindex: "0" }, shown);
}

/** Return a text whose words in backticks are code. */
function words(text) {
  return text.split("`").map((part, at) => (at % 2 ? make("code", {}, part) : part));
}

function joined(elements, word) {
  return elements.flatMap((each, at) => (at ? [word, each] : [each]));
}
