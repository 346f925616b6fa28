"use strict";
// Turns the headings of the columns into buttons that sort the rows; without scripts they are plain headings.
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  const headings = [...table.tHead.rows[table.tHead.rows.length - 1].cells];
  const original = [...body.rows];
  if (original.length < 2) continue;
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
      const value = row => row.cells[column].dataset.value;
      const numbers = heading.classList.contains("n");
      const compare = (first, second) => {
        const [a, b] = [value(first), value(second)];
        if (a === "" || b === "") return (a === "") - (b === "");
        const order = numbers ? a - b : a.localeCompare(b, "en", { numeric: true });
        return next === "descending" ? -order : order;
      };
      body.append(...(next === null ? original : [...original].sort(compare)));
    });
  });
}
