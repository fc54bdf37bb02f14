// Sorting, filtering, choosing and tooltips of the report's page. Without it the page shows everything there is.
"use strict";
(() => {
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];
  document.documentElement.classList.add("js");

  // ── sorting ────────────────────────────────────────────────────────────────────────────────────────────────────────

  // The first number of a cell, or its text; what has no number ("–") is the last either way.
  const value = (row, column) => {
    const text = row.cells[column].textContent.trim();
    const number = /^[^0-9]{0,2}([-+−]?[0-9][0-9,]*(\.[0-9]+)?(e[-+]?[0-9]+)?)/i.exec(text.replace("−", "-"));
    return text === "–" || text === "" ? null : number ? Number(number[1].replaceAll(",", "")) : text.toLowerCase();
  };
  const before = (a, b) =>
    typeof a === typeof b ? (typeof a === "number" ? a - b : a.localeCompare(b)) : typeof a === "number" ? -1 : 1;

  for (const button of all("th button")) {
    button.addEventListener("click", () => {
      const head = button.closest("th"), table = head.closest("table"), body = table.tBodies[0];
      const direction = head.getAttribute("aria-sort") === "descending" ? "ascending" : "descending";
      for (const other of all("th[aria-sort]", table)) other.setAttribute("aria-sort", "none");
      head.setAttribute("aria-sort", direction);
      const sign = direction === "ascending" ? 1 : -1;
      const rows = [...body.rows].map((row) => [value(row, head.cellIndex), row]);
      rows.sort(([a], [b]) => (a === null || b === null ? (a === null) - (b === null) : sign * before(a, b)));
      body.append(...rows.map(([, row]) => row));
    });
  }

  // ── filtering ──────────────────────────────────────────────────────────────────────────────────────────────────────

  const filters = all("[data-facet]");
  const shown = (element) =>
    filters.every(({ dataset, value }) => {
      const own = element.getAttribute(`data-${dataset.facet}`);
      return value === "" || own === null || (dataset.facet === "recipe" ? own.includes(value.toLowerCase()) : own === value);
    });
  const filter = () => {
    for (const part of all("[data-sortable]")) {
      const rows = all("tbody tr", part);
      for (const row of rows) row.hidden = !shown(row);
      const left = rows.filter((row) => !row.hidden).length;
      part.hidden = left === 0 && rows.length > 0;
      part.querySelector("[role=status]").textContent = `${left} of ${rows.length} rows`;
    }
    for (const note of all("[data-note]")) note.hidden = !shown(note);
  };
  for (const one of filters) one.addEventListener("input", filter);
  for (const button of all("button[data-reset]")) {
    button.addEventListener("click", () => {
      for (const one of filters) one.value = "";
      filter();
    });
  }
  filter();

  // ── choosing a figure, and one of its drawings ─────────────────────────────────────────────────────────────────────

  for (const chooser of all("[data-chooses]")) {
    const figures = all(`[data-choice="${chooser.dataset.chooses}"]`);
    const choose = () => figures.forEach((figure, i) => { figure.hidden = i !== chooser.selectedIndex; });
    chooser.addEventListener("input", choose);
    choose();
  }
  for (const box of all("[data-switches]")) {
    const turn = () => {
      for (const drawing of all("[data-drawing]", document.getElementById(box.dataset.switches))) {
        drawing.hidden = (drawing.dataset.drawing === box.dataset.to) !== box.checked;
      }
    };
    box.addEventListener("input", turn);
    turn();
  }

  // ── tooltips: what the marks of a chart say of themselves ──────────────────────────────────────────────────────────

  const tip = Object.assign(document.createElement("div"), { className: "tip", hidden: true });
  tip.setAttribute("role", "tooltip");
  tip.setAttribute("aria-live", "polite");
  document.body.append(tip);
  const MARK = "[role=graphics-symbol][aria-label]:not([aria-roledescription=axis]):not([aria-roledescription=legend]):not([aria-roledescription=title])";
  let seen = null;
  const show = (mark) => {
    seen?.classList.remove("seen");
    seen = mark;
    tip.hidden = mark === null;
    if (mark === null) return;
    mark.classList.add("seen");
    tip.textContent = mark.getAttribute("aria-label").replaceAll("; ", "\n");
    const box = mark.getBoundingClientRect(), room = document.documentElement.clientWidth;
    tip.style.left = `${window.scrollX + Math.max(4, Math.min(box.right + 8, room - tip.offsetWidth - 8))}px`;
    tip.style.top = `${window.scrollY + Math.max(4, box.top - tip.offsetHeight - 8)}px`;
  };
  document.addEventListener("pointerover", (event) => show(event.target.closest?.(MARK) ?? null));
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") show(null);
    const drawing = event.target.closest?.("[data-drawing]");
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (!drawing || !step) return;
    const marks = all(MARK, drawing);
    if (!marks.length) return;
    event.preventDefault();
    const at = marks.indexOf(seen);
    show(marks[at < 0 ? (step > 0 ? 0 : marks.length - 1) : (at + step + marks.length) % marks.length]);
  });
  document.addEventListener("focusout", () => show(null));

  // what is printed is everything that the reader chose to see, unfolded
  window.addEventListener("beforeprint", () => all("details").forEach((one) => { one.open = true; }));
})();
