"use strict";
// Turns the headings into buttons that sort the rows, and shows a field that filters them; the page is whole without.
const body = document.querySelector("tbody");
const original = [...body.rows];
const headings = [...document.querySelectorAll("thead th")];
headings.forEach((heading, column) => {
  const button = document.createElement("button");
  button.type = "button";
  button.append(...heading.childNodes);
  heading.append(button);
  button.addEventListener("click", () => {
    const now = heading.getAttribute("aria-sort");
    const next = now === null ? "ascending" : now === "ascending" ? "descending" : null;
    for (const other of headings) other.removeAttribute("aria-sort");
    if (next !== null) heading.setAttribute("aria-sort", next);
    const numbers = heading.classList.contains("n");
    const compare = (first, second) => {
      const [a, b] = [first, second].map(row => row.cells[column].dataset.value);
      if (a === "" || b === "") return (a === "") - (b === "");
      const order = numbers ? a - b : a.localeCompare(b, "en", { numeric: true });
      return next === "descending" ? -order : order;
    };
    body.append(...(next === null ? original : [...original].sort(compare)));
  });
});
const find = document.querySelector(".find");
find.hidden = false;
find.querySelector("input").addEventListener("input", event => {
  const words = event.target.value.toLowerCase().split(/\s+/).filter(Boolean);
  let shown = 0;
  for (const row of original) {
    const text = row.textContent.toLowerCase();
    row.hidden = !words.every(word => text.includes(word));
    shown += !row.hidden;
  }
  find.querySelector("output").textContent = words.length ? `${shown} of ${original.length}` : "";
});
