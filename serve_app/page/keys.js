// The access keys a user has given, for as long as the tab is open, and the dialog that asks.

import { find } from "./dom.js";

const NAMES = { infer: "sightline.key.infer", admin: "sightline.key.admin" };
const TITLES = { infer: "Access key", admin: "Admin key" };
const REASONS = {
  infer: "This server answers only to those who have a key.",
  admin: "Labels can be changed only with an admin key.",
};
let asking = null; // the answer that is being waited for: several calls share one dialog

/** Return the key to send with a call of that scope, or "". An admin key opens both. */
export function keyFor(scope) {
  const admin = sessionStorage.getItem(NAMES.admin) ?? "";
  return scope === "admin" ? admin : (sessionStorage.getItem(NAMES.infer) ?? admin);
}

/** Ask for a key, `refusal` being what was said of the last one; says whether one was given. */
export function askForKey(scope, refusal) {
  asking ??= ask(scope, refusal || REASONS[scope]).finally(() => {
    asking = null;
  });
  return asking;
}

/** Let the button in the page's head forget the keys, and show it while there are any. */
export function offerForgetting() {
  find("forget-key").addEventListener("click", () => {
    for (const name of Object.values(NAMES)) sessionStorage.removeItem(name);
    showForgetting();
    find("model").focus();
  });
  showForgetting();
}

function ask(scope, why) {
  const dialog = find("key-dialog");
  const field = find("key");
  find("key-title").textContent = TITLES[scope];
  find("key-why").textContent = why;
  field.value = "";
  return new Promise((resolve) => {
    let isGiven = false;
    const use = (event) => {
      event.preventDefault();
      sessionStorage.setItem(NAMES[scope], field.value.trim());
      isGiven = true;
      dialog.close();
    };
    const cancel = () => dialog.close();
    const form = dialog.querySelector("form");
    form.addEventListener("submit", use);
    dialog.querySelector(".cancel").addEventListener("click", cancel);
    dialog.addEventListener(
      "close", // the Escape key leads here as well
      () => {
        form.removeEventListener("submit", use);
        dialog.querySelector(".cancel").removeEventListener("click", cancel);
        field.value = "";
        showForgetting();
        resolve(isGiven);
      },
      { once: true },
    );
    dialog.showModal();
    field.focus();
  });
}

function showForgetting() {
  find("forget-key").hidden = keyFor("infer") === "";
}
