// Tables as CSV files that a spreadsheet can open without running what a file name says.

const RISKY = /^[=+\-@\t\r]/; // a spreadsheet takes such a text for a formula

/** Return the text of a CSV file (RFC 4180). */
export function toCsv(rows) {
  return rows.map((row) => row.map(cell).join(",") + "\r\n").join("");
}

/** Let the browser save a text as a file. */
export function save(name, text) {
  // The mark at the front tells spreadsheets that the text is UTF-8.
  saveBlob(name, new Blob(["\ufeff", text], { type: "text/csv" }));
}

/** Let the browser save a file. */
export function saveBlob(name, blob) {
  const address = URL.createObjectURL(blob);
  const link = document.createElement("a");
  link.href = address;
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(address), 1000); // the browser has begun to save it by then
}

function cell(value) {
  if (value === null || value === undefined) return "";
  if (typeof value === "number") return String(value);
  const text = RISKY.test(value) ? `'${value}` : String(value);
  return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}
