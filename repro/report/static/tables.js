/* Tables sorted by their columns: a button in each head, by value where a cell names one. */
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  const body = table.tBodies[0];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      // Numbers first from the largest; a second click turns the order.
      const first = "number" in head.dataset ? "descending" : "ascending";
      const other = first === "ascending" ? "descending" : "ascending";
      const order = head.getAttribute("aria-sort") === first ? other : first;
      heads.forEach((one) => one.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", order);
      const sign = order === "ascending" ? 1 : -1;
      const rows = [...body.rows].sort((a, b) => sign * compare(a.cells[column], b.cells[column], "number" in head.dataset));
      body.append(...rows);
    });
  });
}

function compare(a, b, numeric) {
  const [x, y] = [a, b].map((cell) => cell.dataset.value ?? cell.textContent.trim());
  if (!numeric) return x.localeCompare(y, "en", { numeric: true });
  const [p, q] = [x, y].map((text) => (Number.isFinite(parseFloat(text)) ? parseFloat(text) : -Infinity));
  return p - q;
}
