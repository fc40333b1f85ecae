"use strict";
// Sorts and filters what is on the page already; makes no element out of text and asks nobody for anything.
(() => {
  const table = document.querySelector("table.attempts");
  if (!table) return;
  const heads = [...table.tHead.rows[0].cells];
  const bodies = [...table.tBodies];
  const rows = [...table.querySelectorAll("tr[data-id]")];
  const places = new Map(rows.map((row, i) => [row, i]));
  const box = document.querySelector(".filters");
  const filters = [...box.querySelectorAll("[data-filter]")];
  const chooser = box.querySelector("[data-sort]");
  const points = [...document.querySelectorAll("a.point")];

  // A value that is missing comes last in either direction; equal ones keep the order of the places.
  function compare(column, sign) {
    const value = (row) => row.cells[column].dataset.value;
    const numeric = rows.every((row) => value(row) === "" || !Number.isNaN(Number(value(row))));
    return (a, b) => {
      const [x, y] = [value(a), value(b)];
      if (x === "" || y === "") return (x === "") - (y === "") || places.get(a) - places.get(b);
      const order = numeric ? Number(x) - Number(y) : x < y ? -1 : x > y ? 1 : 0;
      return sign * order || places.get(a) - places.get(b);
    };
  }

  function sort(column, direction) {
    heads.forEach((head, i) => {
      if (i === column) head.setAttribute("aria-sort", direction);
      else head.removeAttribute("aria-sort");
    });
    chooser.value = `${column} ${direction}`;
    const order = compare(column, direction === "ascending" ? 1 : -1);
    for (const body of bodies) body.append(...[...body.rows].filter((row) => row.dataset.id).sort(order));
  }

  function filter() {
    const wanted = Object.fromEntries(filters.map((field) => [field.dataset.filter, field.value]));
    const words = wanted.text.toLowerCase().split(/\s+/).filter(Boolean);
    const shown = new Set();
    for (const row of rows) {
      const fits = ["division", "setting", "state"].every((key) => !wanted[key] || row.dataset[key] === wanted[key]);
      row.hidden = !(fits && words.every((word) => row.dataset.text.includes(word)));
      if (!row.hidden) shown.add(row.dataset.id);
    }
    for (const body of bodies) body.hidden = ![...body.rows].some((row) => row.dataset.id && !row.hidden);
    for (const point of points) {
      const off = !shown.has(point.dataset.id);
      point.classList.toggle("off", off);
      if (off) point.setAttribute("tabindex", "-1");
      else point.removeAttribute("tabindex");
    }
    for (const mark of document.querySelectorAll(".front, .legend [data-division]")) {
      const own = mark.dataset.division || [...mark.classList].find((name) => name !== "front" && name !== "off");
      mark.classList.toggle("off", wanted.division !== "" && own !== wanted.division);
    }
    for (const part of document.querySelectorAll(".pictures")) {
      part.hidden = wanted.setting !== "" && part.dataset.setting !== wanted.setting;
    }
    box.querySelector(".count").textContent =
      shown.size === rows.length ? `${rows.length} shown` : `${shown.size} of ${rows.length} shown`;
  }

  heads.forEach((head, i) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    const first = head.dataset.first;
    const other = first === "ascending" ? "descending" : "ascending";
    button.addEventListener("click", () => sort(i, head.getAttribute("aria-sort") === first ? other : first));
    for (const direction of i ? [first, other] : [first]) {
      const arrow = direction === "ascending" ? "↑" : "↓";
      chooser.append(new Option(`${button.firstChild.textContent.trim()} ${arrow}`, `${i} ${direction}`));
    }
  });
  chooser.options[0].remove();
  chooser.addEventListener("change", () => {
    const [column, direction] = chooser.value.split(" ");
    sort(Number(column), direction);
  });
  for (const field of filters) field.addEventListener("input", filter);

  // A row and its points light each other up.
  const pairs = new Map(rows.map((row) => [row.dataset.id, row]));
  for (const each of [...rows, ...points]) {
    const lit = (on) => () => {
      for (const point of points) if (point.dataset.id === each.dataset.id) point.classList.toggle("lit", on);
      pairs.get(each.dataset.id)?.classList.toggle("lit", on);
    };
    for (const event of ["mouseenter", "focusin"]) each.addEventListener(event, lit(true));
    for (const event of ["mouseleave", "focusout"]) each.addEventListener(event, lit(false));
  }

  box.hidden = false;
  sort(0, "ascending");
  addEventListener("pageshow", filter); // a browser may bring filters back with the page
})();
