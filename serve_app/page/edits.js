// Edits of a label map: the dialog that makes one, and each in words. What an edit does is decided
// by the server; here are only the forms.

import { find, make, say } from "./dom.js";

// What can be done to a label, by its status.
const OFFERED = {
  active: ["rename", "merge", "alias", "set-threshold", "hide"],
  hidden: ["restore", "rename", "merge", "alias", "set-threshold"],
  retired: ["split-back"],
  map: ["set-threshold"],
};

const OPERATIONS = {
  rename: {
    title: "Rename",
    meaning: "Another name for the same label. Its id stays.",
    fields: (label) => [
      field("New name", make("input", { id: "edit-name", maxlength: 200, required: true, value: label.name })),
      tick("edit-keep", "Keep the old name as an alias", true),
    ],
    read: (label) => ({ label: label.id, name: value("edit-name"), keep_alias: find("edit-keep").checked }),
    words: (edit, name) =>
      `Rename ${name(edit.label)} to “${edit.name}”${edit.keep_alias ? ", keep the old name as an alias" : ""}`,
  },
  merge: {
    title: "Merge into another label",
    meaning: "The other label gathers what this one did: their probabilities add up. This one is retired and can be split back.",
    fields: (label, others) => [
      field(
        "Merge into",
        make(
          "select",
          { id: "edit-into", required: true },
          ...others.map((other) => make("option", { value: other.id }, other.name)),
        ),
      ),
    ],
    read: (label) => ({ labels: [label.id], into: value("edit-into") }),
    words: (edit, name) => `Merge ${edit.labels.map(name).join(", ")} into ${name(edit.into)}`,
  },
  alias: {
    title: "Change its aliases",
    meaning: "Other names of the label, by which it is found.",
    fields: (label) => [
      field("Add, one a line", make("textarea", { id: "edit-add", rows: 3 })),
      ...label.aliases.map((alias, at) => tick(`edit-remove-${at}`, `Remove “${alias}”`)),
    ],
    read: (label) => {
      const lines = value("edit-add").split("\n");
      const add = lines.map((line) => line.trim()).filter(Boolean);
      const remove = label.aliases.filter((_, at) => find(`edit-remove-${at}`).checked);
      if (!add.length && !remove.length) throw new Error("Add an alias, or remove one.");
      return { label: label.id, add, remove };
    },
    words: (edit, name) =>
      [
        `Aliases of ${name(edit.label)}:`,
        edit.add?.length ? `add ${edit.add.map(quoted).join(", ")}` : "",
        edit.remove?.length ? `remove ${edit.remove.map(quoted).join(", ")}` : "",
      ].filter(Boolean).join(" "),
  },
  "set-threshold": {
    title: "Set its threshold",
    meaning: "Below this probability the answer is “unknown”.",
    fields: (label) => [
      field(
        label.id === null ? "Threshold, 0 to 1" : "Threshold, 0 to 1 (empty: that of all labels)",
        make("input", {
          id: "edit-threshold", type: "number", min: 0, max: 1, step: "any", inputmode: "decimal",
          required: label.id === null, value: label.threshold ?? "",
        }),
      ),
    ],
    read: (label) => {
      const text = value("edit-threshold");
      return { label: label.id, threshold: text === "" ? null : Number(text) };
    },
    words: (edit, name) => {
      const whose = edit.label === null || edit.label === undefined ? "all labels" : name(edit.label);
      return `Threshold of ${whose}: ${edit.threshold ?? "that of all labels"}`;
    },
  },
  hide: {
    title: "Hide",
    meaning: "An image that this label wins is answered “unknown”, never with the runner-up.",
    fields: () => [],
    read: (label) => ({ label: label.id }),
    words: (edit, name) => `Hide ${name(edit.label)}`,
  },
  restore: {
    title: "Show it again",
    meaning: "The label is answered again.",
    fields: () => [],
    read: (label) => ({ label: label.id }),
    words: (edit, name) => `Show ${name(edit.label)} again`,
  },
  "split-back": {
    title: "Split back",
    meaning: "The label gets back what it gave away when it was merged.",
    fields: () => [],
    read: (label) => ({ label: label.id }),
    words: (edit, name) => `Split ${name(edit.label)} back`,
  },
};

// What stands in a revision that was made otherwise.
const WHOLE_MAPS = {
  rollback: { words: (edit) => `Roll back to revision ${edit.revision}` },
  publish: { words: () => "Publish a whole map" },
};

/** Return an edit in words; `name(id)` tells what a label is called. */
export function inWords(edit, name) {
  return (OPERATIONS[edit.op] ?? WHOLE_MAPS[edit.op]).words(edit, name);
}

/** The dialog that makes one edit. `onEdit(edit, label)` hears of it. */
export class EditDialog {
  constructor(onEdit) {
    this.onEdit = onEdit;
    this.dialog = find("edit-dialog");
    find("edit-op").addEventListener("change", () => this.showFields());
    this.dialog.querySelector("form").addEventListener("submit", (event) => this.submit(event));
    this.dialog.querySelector(".cancel").addEventListener("click", () => this.dialog.close());
  }

  /** Open it for a label, or for the whole map where `label.id` is null. */
  open(label, labels) {
    this.label = label;
    this.others = labels.filter(({ id, status }) => id !== label.id && status !== "retired");
    const offered = OFFERED[label.id === null ? "map" : label.status];
    const isPossible = (op) => op !== "merge" || this.others.length > 0;
    find("edit-title").textContent = label.id === null ? "Threshold of all labels" : `Edit “${label.name}”`;
    const options = offered.filter(isPossible).map((op) => make("option", { value: op }, OPERATIONS[op].title));
    find("edit-op").replaceChildren(...options);
    this.showFields();
    this.dialog.showModal();
  }

  showFields() {
    const { meaning, fields } = OPERATIONS[value("edit-op")];
    find("edit-meaning").textContent = meaning;
    find("edit-fields").replaceChildren(...fields(this.label, this.others));
    say(find("edit-error"), "");
  }

  submit(event) {
    event.preventDefault();
    const op = value("edit-op");
    try {
      const edit = { op, ...OPERATIONS[op].read(this.label) };
      this.dialog.close();
      this.onEdit(edit, this.label);
    } catch (error) {
      say(find("edit-error"), error.message);
    }
  }
}

const value = (id) => find(id).value;

const quoted = (text) => `“${text}”`;

const field = (text, input) =>
  make("div", { class: "field" }, make("label", { for: input.id }, text), input);

function tick(id, text, isTicked = false) {
  return make("label", { class: "tick" }, make("input", { type: "checkbox", id, checked: isTicked }), ` ${text}`);
}
