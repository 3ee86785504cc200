// One image and what became of it: waiting, answered or failed.

import { bar, make, percent, terms } from "./dom.js";

const STATES = { waiting: "Waiting", failed: "Failed" };
let lastKey = 0;

/** An image in the list of results. It shows itself; it knows nothing of how it is scored. */
export class Card {
  constructor(file) {
    lastKey += 1;
    this.key = lastKey;
    this.file = file;
    this.name = file.name || "pasted image";
    this.thumb = "";
    this.element = make("li", { class: "card", "aria-label": this.name });
    this.wait("Waiting…");
  }

  /** Show that there is no answer yet, and why. */
  wait(text) {
    this.state = "waiting";
    this.show(make("p", { class: "hint" }, text));
  }

  /** Show why there is no answer. */
  fail(error) {
    this.state = "failed";
    this.answer = null;
    this.error = error.message;
    this.show(make("p", { class: "failure" }, make("strong", {}, "Error: "), this.error));
  }

  /** Take an answer of a model; `of(card)` tells the neighbours of an embedding. */
  take(model, { answer, milliseconds }, neighbours) {
    this.state = "answered";
    Object.assign(this, { model, answer, milliseconds, neighbours, error: "" });
    this.refresh();
  }

  /** Show the answer again: its neighbours, or what is in effect, may have changed. */
  refresh(current = this.current) {
    this.current = current; // { model, revision }
    if (this.state !== "answered") return;
    const isLabel = this.answer.label !== undefined;
    this.show(
      isLabel ? this.verdict() : null,
      isLabel ? this.scores() : this.nearest(),
      this.facts(),
      this.outdated(),
    );
  }

  /** Say whether the answer is of the model that is picked. */
  isOf(model) {
    return this.state === "answered" && this.model.path === model?.path;
  }

  show(...parts) {
    this.element.className = `card ${this.state}`;
    const picture = this.thumb
      ? make("img", { class: "thumb", src: this.thumb, alt: "", width: 72, height: 72 })
      : make("span", { class: "thumb none", "aria-hidden": "true" }, "no preview");
    const name = make("h3", { class: "text file", title: this.name }, this.name);
    const state = this.state === "answered" ? null : make("span", { class: "state" }, STATES[this.state]);
    const head = make("div", { class: "card-head" }, name, state);
    const body = make("div", { class: "card-body" }, head, ...parts);
    this.element.replaceChildren(picture, body);
  }

  verdict() {
    const { label, confidence, scores } = this.answer;
    // The winner is listed first, unless it is hidden.
    const isKnown = scores.some((score) => score.label === label);
    const meaning = isKnown
      ? `${percent(confidence)} confidence`
      : `the winner, at ${percent(confidence)}, is hidden or below its threshold`;
    return make(
      "p",
      { class: "verdict" },
      make("strong", { class: "text label" }, label),
      make("span", { class: "confidence" }, meaning),
    );
  }

  scores() {
    const rows = this.answer.scores.map(({ label, probability }) =>
      make(
        "li",
        { class: label === this.answer.label ? "score winner" : "score" },
        make("span", { class: "text name" }, label),
        bar(probability),
        make("span", { class: "number" }, percent(probability)),
      ),
    );
    return make("ul", { class: "scores", role: "list", "aria-label": "Scores" }, ...rows);
  }

  nearest() {
    const found = this.neighbours.of(this.key);
    if (!found.length) return make("p", { class: "hint" }, "No other image to compare with yet.");
    const rows = found.map(({ name, thumb, similarity }) =>
      make(
        "li",
        { class: "neighbour" },
        thumb
          ? make("img", { src: thumb, alt: "", width: 40, height: 40 })
          : make("span", { class: "thumb none", "aria-hidden": "true" }),
        make("span", { class: "text name", title: name }, name),
        bar(similarity),
        make("span", { class: "number" }, similarity.toFixed(3)),
      ),
    );
    const title = make("p", { class: "hint" }, "Nearest of the images so far, by cosine");
    const list = make("ol", { class: "neighbours", role: "list", "aria-label": "Nearest images" }, ...rows);
    return make("div", {}, title, list);
  }

  facts() {
    const { answer, milliseconds } = this;
    return terms([
      ["Round trip", `${milliseconds.toFixed(0)} ms`],
      ["Engine", `${answer.engine} ${answer.precision}`],
      ["Version", `${answer.model} ${answer.version}`],
      ["Labels", answer.label_revision === undefined ? null : `revision ${answer.label_revision}`],
      ["Vector", answer.embedding ? `${answer.embedding.length} numbers` : null],
    ]);
  }

  /** Say whether the picked model would not answer so any more. */
  get isOld() {
    if (this.state !== "answered") return false;
    const { model, revision } = this.current;
    return !this.isOf(model) || this.answer.label_revision < revision;
  }

  outdated() {
    if (!this.isOld) return null;
    const why = this.isOf(this.current.model)
      ? `label revision ${this.current.revision} is published since`
      : "another model is picked now";
    return make("p", { class: "old" }, `Old: ${why}.`);
  }
}

/** Return the card's line of a CSV file. */
export function csvRow(card) {
  const answer = card.answer ?? {};
  const [nearest] = answer.embedding ? card.neighbours.of(card.key) : [];
  return [
    card.name,
    answer.label,
    answer.confidence,
    answer.scores?.map(({ label, probability }) => `${label}=${probability.toFixed(6)}`).join("; "),
    nearest?.name,
    nearest?.similarity,
    answer.model,
    answer.version,
    answer.label_revision,
    answer.engine,
    answer.precision,
    card.answer ? Math.round(card.milliseconds) : null,
    card.error,
  ];
}

export const CSV_HEAD = [
  "file", "label", "confidence", "scores", "nearest", "similarity", "model", "version",
  "label_revision", "engine", "precision", "milliseconds", "error",
];

