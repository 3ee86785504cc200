// Filters the rows that are there already: without this script the page shows all of them.
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

for (const filter of filters) filter.addEventListener("input", apply);
apply();
