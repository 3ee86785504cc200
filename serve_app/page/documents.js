// Links to what the picked model's bundle says of itself: its report and its card.

import { call } from "./api.js";
import { saveBlob } from "./csv.js";
import { find, make, say } from "./dom.js";
import { keyFor } from "./keys.js";

const NAMES = { "report.html": "Report", "model_card.md": "Model card" };

/** Show the links of a model; none where its bundle has no such document. */
export function showDocuments(model) {
  const links = (model?.documents ?? []).filter((name) => name in NAMES).map((name) => link(model, name));
  const place = find("model-documents");
  place.hidden = links.length === 0;
  place.replaceChildren(...links);
}

function link(model, name) {
  const path = `${model.path}/documents/${name}`;
  const onclick = (event) => {
    if (!keyFor("infer")) return; // the browser follows the link
    event.preventDefault();
    fetchAndSave(model, name, path);
  };
  return make("a", { href: path, target: "_blank", rel: "noopener", onclick }, NAMES[name]);
}

/** A link sends no key, so the file is fetched with it and saved, to be opened from there. */
async function fetchAndSave(model, name, path) {
  try {
    const { body } = await call("GET", path, { isFile: true });
    saveBlob(`${model.name}-${model.version}-${name}`, body);
    say(find("model-problem"), "");
  } catch (error) {
    say(find("model-problem"), `${NAMES[name]} is not to be had: ${error.message}`);
  }
}
