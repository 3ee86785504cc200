// The models of this server: the list to pick from, and what the page has to know of the picked one.

import { call } from "./api.js";
import { counted, find, make, say } from "./dom.js";

const LOOK_AGAIN_MS = 3000; // while a model is loading, or none is ready

/** The list of models. `onPick(model)` hears of the picked one. */
export class Models {
  constructor(onPick) {
    this.onPick = onPick;
    this.entries = [];
    this.picked = ""; // the path of the picked model
    find("model").addEventListener("change", (event) => this.pick(event.target.value));
    find("refresh").addEventListener("click", () => this.refresh());
  }

  /** Read the list anew; picks the first model that is ready if none is picked. */
  async refresh() {
    clearTimeout(this.timer);
    try {
      this.entries = (await call("POST", "v2/repository/index", { body: {} })).body;
      say(find("model-problem"), this.entries.length ? "" : "This server has no model yet.");
    } catch (error) {
      say(find("model-problem"), `The list of models is not to be had: ${error.message}`);
    }
    this.show();
    const ready = this.entries.filter((entry) => entry.state === "READY");
    if (ready.every((entry) => pathOf(entry) !== this.picked) && ready.length) {
      await this.pick(pathOf(ready[0]));
    }
    if (!ready.length || this.entries.some((entry) => entry.state === "LOADING")) {
      this.timer = setTimeout(() => this.refresh(), LOOK_AGAIN_MS);
    }
  }

  show() {
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
    find("model").value = path;
    try {
      const { body } = await call("GET", `${path}/config`);
      if (this.picked !== path) return; // another one was picked meanwhile
      say(find("model-problem"), "");
      const model = describe(path, body);
      find("model-facts").textContent = model.facts;
      this.onPick(model);
    } catch (error) {
      if (this.picked !== path) return;
      this.picked = "";
      find("model").value = "";
      find("model-facts").textContent = "";
      say(find("model-problem"), `This model cannot be used: ${error.message}`);
    }
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
    facts: `kind ${told.kind}, version ${told.version}, ${engine}${classes}`,
    canClassify: told.calls.includes("classify"),
    canEmbed: told.calls.includes("embed"),
    hasLabelMap: told.has_label_map,
    revision: told.labels?.revision ?? null,
  };
}
