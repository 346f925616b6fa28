// Shows a field that filters the rows; the page is whole without.
const all = [...document.querySelectorAll("tbody tr")];
const find = document.querySelector(".find");
find.hidden = false;
find.querySelector("input").addEventListener("input", event => {
  const words = event.target.value.toLowerCase().split(/\s+/).filter(Boolean);
  let shown = 0;
  for (const row of all) {
    const text = row.textContent.toLowerCase();
    row.hidden = !words.every(word => text.includes(word));
    shown += !row.hidden;
  }
  find.querySelector("output").textContent = words.length ? `${shown} of ${all.length}` : "";
});
