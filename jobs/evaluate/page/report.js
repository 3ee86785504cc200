// Moves the threshold: what is answered then, and how much of it is right.
const curves = JSON.parse(document.getElementById("curves").textContent);
const slider = document.getElementById("threshold");
const percent = (part, whole) => (whole ? `${((100 * part) / whole).toFixed(1)}%` : "–");

function put(id, shown) {
  document.getElementById(id).textContent = shown;
}

function move() {
  const step = Number(slider.value);
  const answered = curves.answered[step];
  const right = curves.right[step];
  put("threshold-shown", (step / 100).toFixed(2));
  put("now-answered", percent(answered, curves.total));
  put("now-right", percent(right, answered));
  put("now-left", (curves.total - answered).toLocaleString("en"));
  put("now-wrong", (answered - right).toLocaleString("en"));
  const line = document.getElementById("threshold-line");
  const [from, to] = [Number(line.dataset.from), Number(line.dataset.to)];
  const x = from + ((to - from) * step) / 100;
  line.setAttribute("x1", x);
  line.setAttribute("x2", x);
  for (const cell of document.querySelectorAll("[data-answered]")) {
    const label = curves.labels[cell.dataset.answered];
    cell.textContent = percent(label.answered[step], label.total);
  }
  for (const cell of document.querySelectorAll("[data-right]")) {
    const label = curves.labels[cell.dataset.right];
    cell.textContent = percent(label.right[step], label.answered[step]);
  }
}

slider.addEventListener("input", move);
move();
