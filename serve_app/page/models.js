// The models of this server: the list to pick from, and what the page has to know of the picked one.

import { call } from "./api.js";
import { showDocuments } from "./documents.js";
import { counted, find, make, say } from "./dom.js";

const LOOK_AGAIN_MS = 3000; // while a model is loading, or none is ready

/**
 * The list of models. `onPick(model)` hears of the picked one; before, `onPicking(true)` that there
 * will be one, and `onPicking(false)` if it cannot be used.
 */
export class Models {
  constructor(onPick, onPicking) {
    this.onPick = onPick;
    this.onPicking = onPicking;
    this.entries = [];
    this.picked = ""; // the path of the picked model
    this.used = null; // the picked model, described
    this.isFirst = true; // nothing has been picked yet, by the page or its user
    find("model").addEventListener("change", (event) => this.pick(event.target.value));
    find("refresh").addEventListener("click", () => this.refresh());
  }

  /** Read the list anew; picks the first model that is ready if none has been picked. */
  async refresh() {
    clearTimeout(this.timer);
    let entries = [];
    try {
      entries = (await call("POST", "v2/repository/index", { body: {} })).body;
      say(find("model-problem"), entries.length ? "" : "This server has no model yet.");
    } catch (error) {
      say(find("model-problem"), `The list of models is not to be had: ${error.message}`);
      if (error.code === "no_key") return; // who gave none is not asked every three seconds
    }
    this.show(entries);
    const ready = entries.find((entry) => entry.state === "READY");
    if (!ready || entries.some((entry) => entry.state === "LOADING")) {
      this.timer = setTimeout(() => this.refresh(), LOOK_AGAIN_MS);
    }
    if (ready && this.isFirst) await this.pick(pathOf(ready));
  }

  show(entries) {
    // Making the options anew would shut the list in the face of who is looking at it.
    if (JSON.stringify(entries) === JSON.stringify(this.entries)) return;
    this.entries = entries;
    const options = this.entries.map((entry) => {
      const isReady = entry.state === "READY";
      const name = entry.version ? `${entry.name} (version ${entry.version})` : entry.name;
      const text = isReady ? name : `${name}: ${entry.state.toLowerCase()}`;
      return make("option", { value: pathOf(entry), disabled: !isReady }, text);
    });
    find("model").replaceChildren(...options);
    find("model").value = this.picked;
    const waiting = this.entries.filter((entry) => entry.state !== "READY");
    find("not-ready").hidden = waiting.length === 0;
    find("not-ready").replaceChildren(
      ...waiting.map((entry) => {
        const reason = entry.reason || "no reason is given";
        return make("li", {}, `${entry.name} is ${entry.state.toLowerCase()}: ${reason}`);
      }),
    );
  }

  async pick(path) {
    this.picked = path;
    this.isFirst = false;
    find("model").value = path;
    find("model-facts").textContent = "…";
    this.onPicking(true);
    try {
      const { body } = await call("GET", `${path}/config`);
      if (this.picked !== path) return; // another one was picked meanwhile
      say(find("model-problem"), "");
      this.used = describe(path, body);
      this.onPick(this.used);
    } catch (error) {
      if (this.picked !== path) return;
      const name = find("model").selectedOptions[0].textContent;
      say(find("model-problem"), `${name} cannot be used: ${error.message}`);
      this.picked = this.used?.path ?? ""; // images still go to that one
      find("model").value = this.picked;
      this.onPicking(false);
    }
    find("model-facts").textContent = this.used?.facts ?? "";
    showDocuments(this.used);
  }
}

/** Return the path of one version; a version that the server could not tell is left out. */
function pathOf(entry) {
  const path = `v2/models/${encodeURIComponent(entry.name)}`;
  return entry.version ? `${path}/versions/${encodeURIComponent(entry.version)}` : path;
}

function describe(path, config) {
  const told = config.sightline;
  const engine = `${told.engine.name} ${told.engine.precision} on ${told.engine.device}`;
  const count = told.classes.length;
  const classes = count ? `, ${counted(count, "class", "classes")}` : "";
  return {
    path,
    name: config.name,
    version: String(told.version),
    documents: told.documents ?? [], // a server of before has none
    facts: `kind ${told.kind}, version ${told.version}, ${engine}${classes}`,
    canClassify: told.calls.includes("classify"),
    canEmbed: told.calls.includes("embed"),
    hasLabelMap: told.has_label_map,
    revision: told.labels?.revision ?? null,
  };
}
