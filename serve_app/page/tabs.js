// Two views behind two tabs, as screen readers and the arrow keys expect them.

import { find } from "./dom.js";

/** Tabs `#tab-NAME` with their panels `#panel-NAME`. */
export class Tabs {
  constructor(names) {
    this.names = names;
    find("tabs").addEventListener("keydown", (event) => this.step(event));
    for (const name of names) find(`tab-${name}`).addEventListener("click", () => this.show(name));
    this.show(names[0]);
  }

  /** Show one view. */
  show(shown) {
    this.shown = shown;
    for (const name of this.names) {
      find(`tab-${name}`).setAttribute("aria-selected", String(name === shown));
      find(`tab-${name}`).tabIndex = name === shown ? 0 : -1;
      find(`panel-${name}`).hidden = name !== shown;
    }
  }

  step(event) {
    const at = this.names.indexOf(this.shown);
    const last = this.names.length - 1;
    const to = {
      ArrowLeft: at === 0 ? last : at - 1,
      ArrowRight: at === last ? 0 : at + 1,
      Home: 0,
      End: last,
    }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    this.show(this.names[to]);
    find(`tab-${this.shown}`).focus();
  }
}
