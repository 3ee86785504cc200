// The list of results: it scores what comes in, a few at a time, and keeps the newest.

import { Card, CSV_HEAD, csvRow } from "./cards.js";
import { save, toCsv } from "./csv.js";
import { bar, counted, find, make, say, whole } from "./dom.js";
import { thumbnail } from "./images.js";
import { MAX_VECTORS, Neighbours } from "./nearest.js";
import { Queue } from "./queue.js";
import { score } from "./scoring.js";

const AT_ONCE = 3; // requests
const MAX_CARDS = 200;
const MAX_WAITING = 1000;
const LABELS_COUNTED = 12; // in the summary; the rest is one row

/** All images of this page and their answers. */
export class Results {
  constructor() {
    this.cards = []; // newest first
    this.model = null;
    this.published = 0; // the newest label revision that this page knows of
    this.minRevision = 0;
    this.numLetGo = this.numRefused = 0;
    this.byKey = new Map();
    this.early = []; // files that came before a model was picked
    this.isHeld = false; // another model is being picked, and what comes in is meant for it
    this.neighbours = new Neighbours((key) => this.byKey.get(key)?.refresh());
    const options = { atOnce: AT_ONCE, longest: MAX_WAITING, onChange: () => this.showState() };
    this.queue = new Queue((item, signal) => this.score(item, signal), options);
    find("again").addEventListener("click", () => this.scoreAgain());
    find("export").addEventListener("click", () => save("sightline.csv", toCsv(this.rows())));
    find("clear").addEventListener("click", () => this.clear());
    this.showState();
  }

  /** Go on with another model. What there is stays, and says that it is of another one. */
  useModel(model) {
    const isAnother = model.path !== this.model?.path;
    if (isAnother) {
      this.giveUp(new Error("Another model was picked before it was scored: score again."));
      this.neighbours.clear();
      this.minRevision = 0;
    }
    this.model = model;
    this.usePublished(model.revision ?? 0, false);
    this.hold(false);
  }

  /** Keep the images that come in from now on, or score those that were kept. */
  hold(isHeld) {
    this.isHeld = isHeld;
    if (!isHeld) this.add(this.early.splice(0));
  }

  /** Hear of a label revision; answers made with older ones say so from now on. */
  usePublished(revision, isInEffect) {
    this.published = revision;
    if (isInEffect) this.minRevision = revision;
    for (const card of this.cards) card.refresh(this.current);
    this.showState();
  }

  get current() {
    return { model: this.model, revision: this.published };
  }

  /** Score images that came in. */
  add(files) {
    if (!files.length) return;
    if (!this.model || this.isHeld) return this.early.push(...files.slice(0, MAX_WAITING));
    this.numRefused = files.length - this.queue.add(files.map((file) => ({ file })));
    this.showState();
  }

  scoreAgain() {
    const cards = this.cards.filter(({ state }) => state !== "waiting").reverse();
    for (const card of cards) card.wait("Waiting to be scored again…");
    this.queue.add(cards.map((card) => ({ card })));
  }

  clear() {
    this.queue.cancel();
    this.cards = [];
    this.byKey.clear();
    this.neighbours.clear();
    this.numLetGo = this.numRefused = 0;
    find("results").replaceChildren();
    this.showState();
    find("files").focus();
  }

  rows() {
    return [CSV_HEAD, ...this.cards.filter(({ state }) => state !== "waiting").map(csvRow)];
  }

  async score(item, signal) {
    const card = item.card ?? this.open(item.file);
    const { model, minRevision } = this;
    card.wait("Scoring…");
    const onWait = (seconds, number) =>
      card.wait(`The server is busy; asking again in ${seconds} s (number ${number}).`);
    try {
      const [thumb, outcome] = await Promise.all([
        card.thumb || thumbnail(card.file),
        score(model, card.file, { minRevision, signal, onWait }).catch((error) => error),
      ]);
      card.thumb = thumb;
      if (outcome instanceof Error) throw outcome;
      if (signal.aborted) return;
      card.current = this.current;
      card.take(model, outcome, this.neighbours);
      const { embedding, label_revision } = outcome.answer;
      if (embedding) this.neighbours.add(card.key, card.name, thumb, embedding);
      if (label_revision > this.published) this.usePublished(label_revision, false);
    } catch (error) {
      if (signal.aborted) return;
      card.fail(error);
      // Asking for a key again with each image would help nobody.
      if (error.code === "no_key") this.giveUp(error);
    }
  }

  /** Let all images that have no answer yet fail for one reason. */
  giveUp(error) {
    for (const item of this.queue.waiting) if (!item.card) this.open(item.file);
    this.queue.cancel();
    for (const card of this.cards) if (card.state === "waiting") card.fail(error);
    this.showState();
  }

  open(file) {
    const card = new Card(file);
    this.cards.unshift(card);
    this.byKey.set(card.key, card);
    find("results").prepend(card.element);
    for (let last; this.cards.length > MAX_CARDS && (last = this.cards.at(-1)).state !== "waiting"; ) {
      this.drop(last);
      this.numLetGo += 1;
    }
    return card;
  }

  drop(card) {
    this.cards.splice(this.cards.indexOf(card), 1);
    this.byKey.delete(card.key);
    this.neighbours.hide(card.key);
    card.element.remove();
  }

  showState() {
    const { left, numAdded } = this.queue;
    find("no-results").hidden = this.cards.length > 0;
    find("again").disabled = find("export").disabled = !this.cards.length || left > 0;
    find("clear").disabled = !this.cards.length;
    find("progress").hidden = find("done").hidden = left === 0;
    find("progress").max = Math.max(1, numAdded);
    find("progress").value = numAdded - left;
    find("done").textContent = `${whole(numAdded - left)} of ${whole(numAdded)}`;
    this.announce(left ? `Scoring ${counted(numAdded, "image")}…` : this.outcome());
    say(find("kept"), this.limits());
    const numOld = this.cards.filter((card) => card.isOld).length;
    say(find("old-answers"), numOld ? `${counted(numOld, "answer is", "answers are")} old: score again.` : "");
    this.showCounts();
  }

  /** Tell a screen reader what is new, and not the same again with each image. */
  announce(text) {
    if (find("status").textContent !== text) find("status").textContent = text;
  }

  outcome() {
    if (!this.cards.length) return "No image yet.";
    const numFailed = this.cards.filter(({ state }) => state === "failed").length;
    const failures = numFailed ? `, ${whole(numFailed)} failed` : "";
    return `${counted(this.cards.length - numFailed, "image")} answered${failures}.`;
  }

  limits() {
    const said = [];
    if (this.numRefused) said.push(`${counted(this.numRefused, "image")} not taken: at most ${whole(MAX_WAITING)} wait.`);
    if (this.numLetGo) said.push(`The newest ${MAX_CARDS} results are kept; ${whole(this.numLetGo)} older went.`);
    if (this.neighbours.size >= MAX_VECTORS) said.push(`The newest ${whole(MAX_VECTORS)} images are compared.`);
    return said.join(" ");
  }

  showCounts() {
    const counts = new Map();
    const labelled = this.cards.filter((card) => card.isOf(this.model) && card.answer.label !== undefined);
    for (const { answer } of labelled) counts.set(answer.label, (counts.get(answer.label) ?? 0) + 1);
    const sorted = [...counts].sort(([, left], [, right]) => right - left);
    const rest = sorted.splice(LABELS_COUNTED);
    if (rest.length) {
      const number = rest.reduce((sum, [, count]) => sum + count, 0);
      sorted.push([`${counted(rest.length, "other label")}`, number]);
    }
    find("counts").hidden = sorted.length === 0;
    const rows = sorted.map(([label, count]) =>
      make(
        "tr",
        {},
        make("th", { scope: "row", class: "text" }, label),
        make("td", { class: "wide-cell" }, bar(count / labelled.length)),
        make("td", { class: "number" }, whole(count)),
      ),
    );
    find("counts").querySelector("tbody").replaceChildren(...rows);
  }
}
