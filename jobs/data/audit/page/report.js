"use strict";
// Filters and sorts the rows that are there already: without this script the page shows all of them.
const filters = [...document.querySelectorAll("[data-filter]")];
const rows = [...document.querySelectorAll("[data-row]")];

function matches(row) {
  return filters.every((filter) => {
    const wanted = filter.value;
    if (!wanted) return true;
    if (filter.dataset.filter === "text") return row.textContent.toLowerCase().includes(wanted.toLowerCase());
    return row.dataset[filter.dataset.filter] === wanted;
  });
}

function apply() {
  let shown = 0;
  for (const row of rows) {
    row.hidden = !matches(row);
    shown += row.hidden ? 0 : 1;
  }
  for (const kind of document.querySelectorAll(".kind")) {
    kind.hidden = !kind.querySelector("[data-row]:not([hidden])");
  }
  document.getElementById("shown").textContent = `${shown} of ${rows.length} rows`;
}

function sort(head) {
  const body = head.closest("table").tBodies[0];
  const column = [...head.parentElement.children].indexOf(head);
  const rising = head.getAttribute("aria-sort") !== "ascending";
  for (const other of head.parentElement.children) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", rising ? "ascending" : "descending");
  const key = (row) => {
    const text = row.cells[column].textContent;
    return head.dataset.sort === "number" ? (text === "" ? Infinity : Number(text)) : text;
  };
  const compare = (a, b) => (a < b ? -1 : a > b ? 1 : 0);
  const sorted = [...body.rows].sort((a, b) => compare(key(a), key(b)) * (rising ? 1 : -1));
  body.append(...sorted);
}

for (const filter of filters) filter.addEventListener("input", apply);
for (const head of document.querySelectorAll("th[data-sort]")) {
  head.addEventListener("click", () => sort(head));
  head.addEventListener("keydown", (event) => { if (event.key === "Enter") sort(head); });
}
// Printed, everything is open.
addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((d) => { d.open = true; }));
apply();
