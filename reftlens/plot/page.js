"use strict";
// Makes tables, strips and curves answer a pointer and the arrow keys. Without it, they stand as they are.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const tip = document.getElementById("tip");
  const all = (inside, what) => [...inside.querySelectorAll(what)];
  const number = (value, decimals) => {
    if (value === null) return "\u2013";
    const text = value.toFixed(decimals);
    return Number(text) === 0 ? (0).toFixed(decimals) : text.replace("-", "\u2212");
  };

  // One tip for the page, below what is pointed at or focused, and never outside the window.
  const show = (event) => {
    const target = event.target instanceof Element ? event.target.closest("[data-tip]") : null;
    tip.hidden = !target;
    if (!target) return;
    tip.textContent = target.dataset.tip;
    const box = target.getBoundingClientRect();
    const below = box.bottom + 6 + tip.offsetHeight <= window.innerHeight;
    tip.style.left = `${Math.max(4, Math.min(box.left, document.documentElement.clientWidth - tip.offsetWidth - 4))}px`;
    tip.style.top = `${below ? box.bottom + 6 : Math.max(4, box.top - 6 - tip.offsetHeight)}px`;
  };
  const hide = () => { tip.hidden = true; };
  for (const name of ["pointerover", "focusin"]) document.addEventListener(name, show);
  document.addEventListener("focusout", hide);
  // The tip of what has the focus goes along with it.
  document.addEventListener("scroll", () => { if (!tip.hidden) show({ target: document.activeElement }); }, true);
  document.documentElement.addEventListener("pointerleave", hide);
  document.addEventListener("keydown", (event) => { if (event.key === "Escape") hide(); });
  for (const element of all(document, "[title], .move")) {
    const title = element.querySelector("title");
    element.dataset.tip = title ? title.textContent : element.title;
    if (title) title.remove();
    element.removeAttribute("title");
    element.setAttribute("aria-describedby", "tip");
  }

  // Arrow keys move between the cells of a map or strip, which is one stop of the tab key.
  for (const box of all(document, ".cells")) {
    const cells = all(box, "[data-tip]");
    const columns = Number(box.dataset.columns);
    cells.forEach((cell, place) => { cell.tabIndex = place === 0 ? 0 : -1; });
    box.addEventListener("keydown", (event) => {
      const steps = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns };
      const from = cells.indexOf(event.target);
      const next = cells[from + steps[event.key]];
      if (!(event.key in steps) || from < 0) return;
      event.preventDefault();
      if (!next) return;
      cells[from].tabIndex = -1;
      next.tabIndex = 0;
      next.focus();
    });
  }

  // A map shows the measured values, their control or the difference, of the mean or of one prompt.
  const fill = (table, map, view, what) => {
    all(table, "thead th[scope=col]").forEach((head, column) => { head.textContent = view.tokens[column]; });
    all(table, "tbody tr").forEach((line, row) => all(line, "td").forEach((cell, column) => {
      const value = view.value[row][column];
      const control = view.control && view.control[row][column];
      const apart = value === null || control === null ? null : value - control;
      const shown = { measured: value, control, difference: apart }[what];
      const covered = what !== "control" && control !== null && value !== null && Math.abs(value) <= view.reach;
      const shade = shown === null ? 0 : Math.round(20 * Math.max(-1, Math.min(1, shown / map.limit)));
      cell.className = shown === null ? "none" : covered ? "covered" : `v${shade + 20}`;
      cell.textContent = number(shown, map.decimals);
      const beside = control !== null ? `, control ${number(control, map.more)}, difference ${number(apart, map.more)}` : "";
      cell.dataset.tip = `${map.rows[row]}, ${map.column}${view.tokens[column]}, ${view.name}: ` +
        (value === null ? "no value" : `measured ${number(value, map.more)}${beside}${covered ? "; the control reaches as far" : ""}`);
    }));
  };
  all(document, "figure.map").forEach((figure) => {
    const map = data[figure.dataset.number];
    const [table, controls] = [figure.querySelector("table"), figure.querySelector(".switch")];
    const pick = controls.querySelector("select");
    const update = () => {
      const what = controls.querySelector("input:checked");
      fill(table, map, map.views[pick ? pick.selectedIndex : 0], what ? what.value : "measured");
    };
    controls.addEventListener("change", update);
    controls.hidden = !controls.children.length;
    update();
  });

  // The slider of a dose curve reads the curve out.
  all(document, "figure.dose").forEach((figure) => {
    const dose = data[figure.dataset.number];
    const slider = figure.querySelector("input");
    const update = () => {
      const at = dose[Number(slider.value)];
      figure.querySelector("output").textContent = at.text;
      slider.setAttribute("aria-valuetext", at.text);
      for (const line of all(figure, ".marker")) {
        line.setAttribute("x1", at.x);
        line.setAttribute("x2", at.x);
      }
    };
    slider.addEventListener("input", update);
    figure.querySelector(".switch").hidden = false;
    update();
  });

  // A click on the head of a column sorts by it; missing values stay last.
  const sort = (table, head, column) => {
    const up = head.getAttribute("aria-sort") !== "ascending";
    all(table, "th[aria-sort]").forEach((other) => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    const body = table.tBodies[0];
    const keyed = [...body.rows].map((row) => {
      const cell = row.cells[column];
      const key = cell.dataset.key;
      return { row, missing: key === "", key: key === undefined ? cell.textContent : Number(key) };
    });
    const order = (a, b) => (typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b)));
    keyed.sort((a, b) => a.missing - b.missing || (up ? 1 : -1) * order(a.key, b.key));
    body.append(...keyed.map((line) => line.row));
  };
  all(document, "table.data").forEach((table) => all(table, "thead th").forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    button.addEventListener("click", () => sort(table, head, column));
    head.append(button);
  }));

  // A link opens what it leads into. In a notebook's frame a fragment would be taken for one of the notebook's own page.
  const reveal = (hash) => {
    const target = document.getElementById(decodeURIComponent(hash.slice(1)));
    for (let at = target; at; at = at.parentElement) if (at.tagName === "DETAILS") at.open = true;
    if (target) target.scrollIntoView();
  };
  document.addEventListener("click", (event) => {
    const link = event.target instanceof Element ? event.target.closest("a[href^='#']") : null;
    if (!link) return;
    if (location.protocol === "about:") event.preventDefault();
    reveal(link.getAttribute("href"));
  });
  if (location.hash) reveal(location.hash);
  performance.mark("ready");
})();
