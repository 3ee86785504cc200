// One image and what became of it: waiting, answered or failed.

import { bar, make, percent, terms } from "./dom.js";

const STATES = { waiting: "Waiting", failed: "Failed", answered: "Answered" };
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
    this.current = current;
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
    const body = make("div", { class: "card-body" }, make("div", { class: "card-head" }, name, state), ...parts.filter(Boolean));
    this.element.replaceChildren(picture, body);
  }

  verdict() {
    const { label, confidence } = this.answer;
    return make(
      "p",
      { class: "verdict" },
      make("strong", { class: "text label" }, label),
      make("span", { class: "confidence" }, `${percent(confidence)} confidence`),
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
    return make("ul", { class: "scores", "aria-label": "Scores" }, ...rows);
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
    return make("ol", { class: "neighbours", "aria-label": "Nearest images, by cosine" }, ...rows);
  }

  facts() {
    const { answer, milliseconds } = this;
    return terms([
      ["Time", `${milliseconds.toFixed(0)} ms`],
      ["Engine", `${answer.engine} ${answer.precision}`],
      ["Version", `${answer.model} ${answer.version}`],
      ["Labels", answer.label_revision === undefined ? null : `revision ${answer.label_revision}`],
      ["Vector", answer.embedding ? `${answer.embedding.length} numbers` : null],
    ]);
  }

  /** Say when the answer is not what the picked model would say now. */
  outdated() {
    const { model, revision } = this.current ?? {};
    if (model && !this.isOf(model)) {
      return make("p", { class: "old" }, `Of another model; ${model.name} ${model.version} is picked now.`);
    }
    const made = this.answer.label_revision;
    if (made === undefined || !revision || made >= revision) return null;
    return make("p", { class: "old" }, `Made with label revision ${made}; ${revision} is published since.`);
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

