// The labels of the picked model and the edits that are not published yet.

import { ApiError, call } from "./api.js";
import { counted, find, make, moment, say } from "./dom.js";
import { EditDialog, inWords } from "./edits.js";
import { History } from "./history.js";
import { Review } from "./review.js";

const ROWS_SHOWN = 200;

/** The view of the label map. `onPublished(revision, isInEffect)` hears of a new revision. */
export class Labels {
  constructor(onPublished) {
    this.onPublished = onPublished;
    this.model = null;
    this.drafts = new Map(); // path of a model -> its pending edits
    this.wrong = new Map(); // position of an edit -> why it cannot be done
    this.dialog = new EditDialog((edit, label) => this.add(edit, label));
    this.review = new Review({
      onPublished: (change, answer) => this.published(change, answer),
      onStale: (change, error) => this.stale(change, error),
      onClose: () => find("review").focus(),
    });
    this.history = new History((change) => this.open(change));
    find("find-label").addEventListener("input", () => this.showTable());
    find("reload-labels").addEventListener("click", () => this.reload());
    find("edit-map").addEventListener("click", () =>
      this.dialog.open({ id: null, threshold: this.told.map.threshold }, []),
    );
    find("review").addEventListener("click", () => this.open(this.change()));
    find("discard").addEventListener("click", () => {
      this.replace([]);
      find("pending-title").focus();
    });
    window.addEventListener("beforeunload", (event) => {
      if ([...this.drafts.values()].some((edits) => edits.length)) event.preventDefault();
    });
  }

  /** Show the labels of a model; null where they cannot change. */
  useModel(model) {
    if (this.model?.path === model?.path) return;
    this.model = model;
    this.told = null;
    this.review.close();
    say(find("labels-done"), "");
    if (model) this.reload();
  }

  get edits() {
    return this.drafts.get(this.model.path) ?? [];
  }

  /** Read the labels anew. */
  async reload() {
    const { model } = this;
    try {
      const { body } = await call("GET", `${model.path}/labels`);
      if (this.model !== model) return;
      this.told = body;
      say(find("labels-message"), body.problem);
      this.show();
      await this.history.open(model, body);
    } catch (error) {
      this.complain(error);
    }
  }

  add(edit, label) {
    this.replace([...this.edits, edit]);
    // The row was made anew, so the dialog could not give the focus back to its button.
    const button = label.id === null ? null : document.querySelector(`[data-edit="${CSS.escape(label.id)}"]`);
    (button ?? find("edit-map")).focus();
  }

  replace(edits) {
    this.drafts.set(this.model.path, edits);
    this.wrong.clear();
    this.review.close();
    this.showTable();
    this.showPending();
  }

  change() {
    return { method: "PUT", path: `${this.model.path}/labels`, body: { edits: this.edits }, isRollback: false };
  }

  /** Try a change without storing it, and show what it would do. */
  async open(change) {
    this.wrong.clear();
    say(find("labels-message"), "");
    say(find("labels-done"), "");
    try {
      await this.review.open({ ...change, body: { ...change.body, base: this.told.revision } });
    } catch (error) {
      if (error instanceof ApiError && error.code === "stale_base") await this.stale(change, error);
      else this.complain(error);
    }
    this.showPending();
  }

  complain(error) {
    for (const { edit, error: why } of error.body?.edits ?? []) this.wrong.set(edit, why);
    const hint = this.wrong.size ? "Some edits cannot be done; each says why. " : "";
    say(find("labels-message"), `${hint}${error.message}`);
  }

  async published(change, answer) {
    if (!change.isRollback) this.replace([]);
    await this.reload();
    const { asked, confirmed } = answer.replicas;
    const at = change.body.effective_at ? ", to take effect later" : "";
    const known = `${confirmed} of ${counted(asked, "replica")} ${confirmed === 1 ? "has" : "have"} it`;
    say(find("labels-done"), `Revision ${answer.revision} is published${at}; ${known}.`);
    find("labels-done").focus();
    this.onPublished(answer.revision, !change.body.effective_at);
  }

  /** Somebody else was faster: show theirs, and keep what was to be done. */
  async stale(change, error) {
    this.review.close();
    await this.reload();
    const kept = change.isRollback ? "" : " Your edits are kept: review them again.";
    say(
      find("labels-message"),
      `Somebody else has changed the labels meanwhile; revision ${error.body.revision} is the newest now.${kept}`,
    );
    find("review").focus();
  }

  show() {
    const { revision, in_effect, author, time, effective_at } = this.told;
    const facts = find("labels-facts");
    facts.replaceChildren(`Revision ${revision}`);
    if (author && revision > 0) facts.append(` by ${author}, `, moment(time));
    if (in_effect !== revision) {
      facts.append(`; revision ${in_effect} is in effect`);
      if (effective_at) facts.append(" until ", moment(effective_at));
    }
    this.showTable();
    this.showPending();
  }

  showTable() {
    if (!this.told) return;
    const { labels, threshold } = this.told.map;
    const wanted = find("find-label").value.trim().toLowerCase();
    const isFound = ({ id, name, aliases }) =>
      [id, name, ...aliases].some((word) => word.toLowerCase().includes(wanted));
    const found = labels.filter(isFound);
    const edited = new Set(this.edits.flatMap((edit) => [edit.label, edit.into, ...(edit.labels ?? [])]));
    const rows = found.slice(0, ROWS_SHOWN).map((label) => this.row(label, threshold, edited.has(label.id)));
    find("labels").querySelector("tbody").replaceChildren(...rows);
    const numMore = found.length - rows.length;
    const none = found.length ? "" : "No label has this in its name, id or aliases.";
    say(find("labels-more"), numMore ? `${counted(numMore, "more label")}: narrow the search to see them.` : none);
  }

  row(label, threshold, isEdited) {
    const { id, name, aliases, status, outputs } = label;
    const text = (words) => make("span", { class: "text" }, words);
    const also = aliases.length ? make("span", { class: "hint also text" }, `also ${aliases.join(", ")}`) : null;
    const into = label.merged_into === null ? "" : ` into ${this.nameOf(label.merged_into)}`;
    const shown = label.threshold ?? `${threshold} (of all)`;
    const gathered = status === "retired" ? "given away" : outputs.join(", ");
    const cell = (title, ...children) => make("td", { role: "cell", "data-title": title }, ...children);
    return make(
      "tr",
      { role: "row", class: `is-${status}` },
      make("th", { role: "rowheader", scope: "row" }, text(name), " ",
        isEdited ? make("span", { class: "chip edited" }, "edit pending") : null, also),
      cell("Id", make("code", { class: "text" }, id)),
      cell("Status", make("span", { class: `chip ${status}` }, status), into ? text(into) : null),
      cell("Outputs", text(gathered)),
      cell("Threshold", status === "retired" ? "–" : String(shown)),
      cell("", make(
        "button",
        { type: "button", "data-edit": id, "aria-label": `Edit ${name}`, onclick: () => this.dialog.open(label, this.told.map.labels) },
        "Edit…",
      )),
    );
  }

  showPending() {
    const name = (id) => `“${this.nameOf(id)}”`;
    const items = this.edits.map((edit, at) => {
      const words = inWords(edit, name);
      const why = this.wrong.get(at);
      const remove = () => {
        this.replace(this.edits.filter((_, other) => other !== at));
        (find("pending").querySelector("button") ?? find("pending-title")).focus();
      };
      return make(
        "li",
        { class: why ? "wrong" : null },
        make("div", { class: "edit" },
          make("span", { class: "text" }, words),
          make("button", { type: "button", class: "quiet", "aria-label": `Remove: ${words}`, onclick: remove }, "Remove")),
        why ? make("p", { class: "failure" }, make("strong", {}, "Cannot be done: "), why) : null,
      );
    });
    find("pending").replaceChildren(...items);
    find("no-pending").hidden = items.length > 0;
    find("review").disabled = find("discard").disabled = items.length === 0;
  }

  nameOf(id) {
    return this.told?.map.labels.find((label) => label.id === id)?.name ?? id;
  }
}
