// Elements, and how numbers and times are written. Text always goes in as text, never as HTML: names
// of files and labels come from anybody.

/** Return the element of an id that the page has to have. */
export function find(id) {
  const element = document.getElementById(id);
  if (element === null) throw new Error(`the page has no element with the id ${id}`);
  return element;
}

/** Make an element. Attributes that are null or false are left out; `on…` are listeners. */
export function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

/** Show a text in an element, or hide the element where there is none. */
export function say(element, text) {
  element.textContent = text ?? "";
  element.hidden = !text;
}

/** Make a bar of a share from 0 to 1. It is for the eye: the number stands beside it. */
export function bar(share, kind = "") {
  const fill = make("span", { class: "fill" });
  fill.style.width = `${Math.min(1, Math.max(0, share)) * 100}%`;
  return make("span", { class: `bar ${kind}`, "aria-hidden": "true" }, fill);
}

export const percent = (share) => (share === null ? "none" : `${(share * 100).toFixed(1)} %`);

export const whole = (number) => number.toLocaleString("en");

/** Return "1 image", "2 images". */
export const counted = (number, noun, nouns = `${noun}s`) =>
  `${whole(number)} ${number === 1 ? noun : nouns}`;

/** Make a time as the reader's own clock and language write it. */
export function moment(text) {
  const written = new Date(text).toLocaleString([], { dateStyle: "medium", timeStyle: "short" });
  return make("time", { datetime: text }, written);
}

/** Make a list of terms and what they are. */
export function terms(entries) {
  const shown = entries.filter(([, value]) => value !== null && value !== undefined);
  return make(
    "dl",
    { class: "facts" },
    ...shown.map(([term, value]) => make("div", {}, make("dt", {}, term), make("dd", {}, value))),
  );
}
