// Sorting and filtering of the table of runs. The page reads as well without it.
const table = document.querySelector("#runs");
if (table) {
  const body = table.tBodies[0];
  const key = (row, index) => {
    const cell = row.cells[index], value = cell.dataset.value ?? cell.textContent.trim();
    return value === "" || isNaN(value) ? value : Number(value);
  };
  const compare = (a, b) => {
    if (a === "" || b === "") return (a === "") - (b === "");
    return typeof a === typeof b ? (a < b ? -1 : a > b ? 1 : 0) : typeof a === "number" ? -1 : 1;
  };
  [...table.tHead.rows[0].cells].forEach((head, index) => {
    const button = document.createElement("button");
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const up = head.getAttribute("aria-sort") !== "ascending";
      for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      const rows = [...body.rows].sort((a, b) => (up ? 1 : -1) * compare(key(a, index), key(b, index)));
      body.append(...rows);
    });
  });
  const filter = document.createElement("p");
  filter.className = "filter";
  filter.innerHTML = '<label>Show runs with <input type="search" placeholder="role, shape, state, agent ..."></label>';
  table.parentElement.before(filter);
  filter.querySelector("input").addEventListener("input", (event) => {
    const wanted = event.target.value.trim().toLowerCase();
    for (const row of body.rows) row.hidden = !row.textContent.toLowerCase().includes(wanted);
  });
}
