// The revisions of a label map: who, when and why; what each changed; and the way back.

import { call } from "./api.js";
import { find, make, moment } from "./dom.js";
import { inWords } from "./edits.js";
import { changeList } from "./review.js";

const SHOWN_AT_FIRST = 10;
const SHOWN_MORE = 50;
const MAX_SHOWN = 1000; // what the server lists at most

/** The list of revisions, newest first. `onRollback(change)` hears of a wish to go back. */
export class History {
  constructor(onRollback) {
    this.onRollback = onRollback;
    find("older").addEventListener("click", () => {
      this.limit = Math.min(MAX_SHOWN, this.limit + SHOWN_MORE);
      this.load();
    });
  }

  /** Show the revisions of a model. */
  async open(model, told) {
    this.model = model;
    this.told = told;
    this.limit = SHOWN_AT_FIRST;
    await this.load();
  }

  async load() {
    const { model, limit } = this;
    const list = find("history");
    try {
      const { body } = await call("GET", `${model.path}/labels/revisions?limit=${limit}`);
      if (this.model !== model) return;
      list.replaceChildren(...body.revisions.map((revision) => this.entry(revision)));
      const last = body.revisions.at(-1)?.number ?? 0;
      find("older").hidden = last === 0 || limit >= MAX_SHOWN;
    } catch (error) {
      list.replaceChildren(make("li", { class: "failure" }, error.message));
    }
  }

  entry(revision) {
    const { number } = revision;
    const title = make("strong", {}, `Revision ${number}`);
    if (revision.error) {
      return make("li", {}, title, make("p", { class: "failure text" }, revision.error));
    }
    const isFirst = number === 0;
    const head = make("p", { class: "revision-head" }, title);
    if (number === this.told.in_effect) head.append(make("span", { class: "chip active" }, "in effect"));
    if (isFirst) head.append(make("span", { class: "hint" }, "the model's own classes"));
    else head.append(make("span", { class: "text" }, revision.author), moment(revision.time));
    if (revision.effective_at) head.append(make("span", { class: "hint" }, "takes effect ", moment(revision.effective_at)));
    const reason = !isFirst && revision.reason ? make("p", { class: "text reason" }, revision.reason) : null;
    const edits = (revision.edits ?? []).map((edit) => make("li", { class: "text" }, inWords(edit, (id) => `“${id}”`)));
    const diff = make("div", { class: "diff", id: `diff-${number}`, hidden: true });
    const toggle = make(
      "button",
      { type: "button", class: "quiet", "aria-expanded": "false", "aria-controls": diff.id, onclick: () => this.toggle(toggle, diff, revision) },
      "Diff", make("span", { class: "sr" }, ` of revision ${number}`),
    );
    const back = make(
      "button",
      { type: "button", class: "quiet", onclick: () => this.onRollback(this.rollback(number)) },
      "Roll back to this", make("span", { class: "sr" }, ` revision, ${number}`),
    );
    const buttons = make("div", { class: "buttons" }, isFirst ? null : toggle, number === this.told.revision ? null : back);
    return make("li", {}, head, reason, edits.length ? make("ul", { class: "made" }, ...edits) : null, buttons, diff);
  }

  rollback(revision) {
    return { method: "POST", path: `${this.model.path}/labels/rollback`, body: { revision }, isRollback: true };
  }

  async toggle(button, place, { number, parent }) {
    const isOpen = place.hidden;
    place.hidden = !isOpen;
    button.setAttribute("aria-expanded", String(isOpen));
    if (!isOpen) return;
    try {
      const path = `${this.model.path}/labels/diff?since=${parent}&to=${number}`;
      place.replaceChildren(...changeList((await call("GET", path)).body.changes));
    } catch (error) {
      place.replaceChildren(make("p", { class: "failure" }, error.message));
    }
  }
}
