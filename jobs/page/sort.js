// Sorts the rows of tables whose heads say how: `data-sort` is text or number.
function sort(head) {
  const body = head.closest("table").tBodies[0];
  const column = [...head.parentElement.children].indexOf(head);
  const rising = head.getAttribute("aria-sort") !== "ascending";
  for (const other of head.parentElement.children) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", rising ? "ascending" : "descending");
  const key = (row) => {
    const { textContent: text, dataset } = row.cells[column];
    if (head.dataset.sort !== "number") return text;
    const value = dataset.value ?? text;
    return value === "" ? null : Number(value);
  };
  const compare = (a, b) => (a < b ? -1 : a > b ? 1 : 0) * (rising ? 1 : -1);
  // Whichever way, what has no value comes last.
  const place = (a, b) => (a === null) - (b === null) || compare(a, b);
  body.append(...[...body.rows].sort((a, b) => place(key(a), key(b))));
}

for (const head of document.querySelectorAll("th[data-sort]")) {
  head.addEventListener("click", () => sort(head));
  head.addEventListener("keydown", (event) => { if (event.key === "Enter") sort(head); });
}
// Printed, everything is open.
addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((d) => { d.open = true; }));
