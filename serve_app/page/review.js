// A change before it is published: what differs, what to know, what would become of the figures.

import { ApiError, call } from "./api.js";
import { bar, counted, find, make, percent, say, whole } from "./dom.js";

const MAX_LISTED = 200; // changes, and labels in the what-if
const FIGURES = [
  ["accuracy", "Accuracy"],
  ["coverage", "Coverage"],
  ["unknown", "Unknown"],
];

/** The review of one change at a time: `{ method, path, body, isRollback }`. */
export class Review {
  constructor({ onPublished, onStale, onClose }) {
    Object.assign(this, { onPublished, onStale, onClose });
    this.change = null;
    this.tried = { payload: "", key: "" };
    find("publish-form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.publish();
    });
    find("back").addEventListener("click", () => {
      this.close();
      this.onClose();
    });
  }

  /** Try a change, and show it. Raises `ApiError` where it cannot be done. */
  async open(change) {
    this.close();
    const { method, path, body } = change;
    const { body: told } = await call(method, `${path}?dry_run=true`, { body, scope: "admin" });
    this.change = change;
    const { changes, notes, what_if } = told;
    find("review-title").textContent = change.isRollback
      ? `Review: back to revision ${body.revision}`
      : `Review: ${counted(body.edits.length, "edit")}`;
    find("review-body").replaceChildren(...changeList(changes), ...noteList(notes), ...whatIf(what_if));
    if (change.isRollback && !find("reason").value) find("reason").value = `back to revision ${body.revision}`;
    find("review-area").hidden = false;
    find("review-title").focus();
  }

  /** Leave the review; nothing was stored. */
  close() {
    this.change = null;
    find("review-area").hidden = true;
    say(find("publish-error"), "");
  }

  async publish() {
    const { change } = this;
    const at = find("effective-at").value;
    const body = {
      ...change.body,
      author: find("author").value,
      reason: find("reason").value,
      ...(at ? { effective_at: new Date(at).toISOString() } : {}),
    };
    find("publish").disabled = true;
    say(find("publish-error"), "");
    try {
      const headers = { "Idempotency-Key": this.keyOf(change, body) };
      const options = { body, headers, scope: "admin" };
      const { body: answer } = await call(change.method, change.path, options);
      this.close();
      find("reason").value = find("effective-at").value = "";
      await this.onPublished({ ...change, body }, answer);
    } catch (error) {
      if (error instanceof ApiError && error.code === "stale_base") await this.onStale(change, error);
      else say(find("publish-error"), refusal(error));
    } finally {
      find("publish").disabled = false;
    }
  }

  /** The same write sent again, after an answer was lost, has the same key; any other a new one. */
  keyOf(change, body) {
    const payload = JSON.stringify([change.path, body]);
    if (payload !== this.tried.payload) this.tried = { payload, key: randomKey() };
    return this.tried.key;
  }
}

function refusal(error) {
  if (error.status !== 0 && error.status !== 503) return `Not published: ${error.message}`;
  return `${error.message} It may be published all the same: publish again to know, it is the same write.`;
}

/** Return a list of changes in the server's words. */
export function changeList(changes) {
  if (!changes.length) return [make("p", { class: "hint" }, "Nothing differs.")];
  const items = changes.slice(0, MAX_LISTED).map(({ text }) => make("li", { class: "text" }, text));
  const numMore = changes.length - items.length;
  if (numMore > 0) items.push(make("li", {}, `and ${counted(numMore, "change")} more`));
  return [make("ul", { class: "changes", role: "list", "aria-label": "Changes" }, ...items)];
}

function noteList(notes) {
  if (!notes.length) return [];
  const items = notes.map((note) => make("li", { class: "text" }, note));
  return [make("div", { class: "notes" }, make("h3", {}, "To know before"), make("ul", {}, ...items))];
}

function whatIf(told) {
  const title = make("h3", {}, "What if");
  if (!told) return [title, make("p", { class: "hint" }, "This model keeps no validation outputs, so there is nothing to tell by.")];
  const differs = told.labels.filter(({ before, after }) => JSON.stringify(before) !== JSON.stringify(after));
  const numSame = told.labels.length - differs.length;
  const same = numSame
    ? ` ${counted(numSame, "label")} without a change ${numSame === 1 ? "is" : "are"} not listed.`
    : "";
  const shown = differs.slice(0, MAX_LISTED);
  const more =
    shown.length < differs.length ? ` Of ${whole(differs.length)} labels that differ, ${MAX_LISTED} are listed.` : "";
  const heads = ["Label", ...FIGURES.map(([, name]) => name)];
  const column = (name) => make("th", { role: "columnheader", scope: "col" }, name);
  const table = make(
    "table",
    { class: "stacked what-if", role: "table", "aria-label": "What if" },
    make("thead", { role: "rowgroup" }, make("tr", { role: "row" }, ...heads.map(column))),
    make(
      "tbody",
      { role: "rowgroup" },
      figureRow("All images", counted(told.num_images, "image"), told, "total"),
      ...shown.map((entry) => figureRow(entry.label, imagesOf(entry), entry, "")),
    ),
  );
  const what =
    `The ${counted(told.num_images, "image")} of the ${told.split} split, read with the labels before and ` +
    "after. Coverage: answered with a label. Accuracy: right among those.";
  return [title, make("p", { class: "hint" }, `${what}${same}${more}`), table];
}

function imagesOf({ before, after }) {
  if (!after) return `${counted(before.num_images, "image")}, gathered by another label now`;
  if (!before) return counted(after.num_images, "image");
  const was = before.num_images === after.num_images ? "" : `${before.num_images} → `;
  return `${was}${counted(after.num_images, "image")}`;
}

function figureRow(name, images, { before, after }, kind) {
  const count = make("span", { class: "hint also" }, images);
  return make(
    "tr",
    { role: "row", class: kind },
    make("th", { role: "rowheader", scope: "row" }, make("span", { class: "text" }, name), count),
    ...FIGURES.map(([figure, title]) =>
      make("td", { role: "cell", "data-title": title }, ...figureLines(before?.[figure], after?.[figure])),
    ),
  );
}

function figureLines(before, after) {
  const line = (word, share, kind) =>
    make(
      "span",
      { class: "figure" },
      make("span", { class: "hint" }, word),
      bar(share ?? 0, kind),
      make("span", { class: "number" }, share === undefined ? "–" : percent(share)),
    );
  if (before === undefined || after === undefined) {
    return [line("before", before, "past"), line("after", after, "")];
  }
  const points = typeof before === "number" && typeof after === "number" ? (after - before) * 100 : 0;
  const sign = points > 0 ? "+" : "−";
  const change = Math.abs(points) < 0.05 ? "no change" : `${sign}${Math.abs(points).toFixed(1)} points`;
  return [line("before", before, "past"), line("after", after, ""), make("span", { class: "hint" }, change)];
}

function randomKey() {
  // Not crypto.randomUUID: browsers have that on https only.
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return [...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}
