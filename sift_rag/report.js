"use strict";
(() => {
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const one = (id) => document.getElementById(id);
  document.documentElement.classList.add("scripted");

  // A box is reached by keyboard where there is something to scroll.
  const boxes = all(".scroll");
  const reach = () => boxes.forEach((box) => {
    if (box.scrollWidth > box.clientWidth) box.tabIndex = 0;
    else box.removeAttribute("tabindex");
  });
  addEventListener("resize", reach);
  document.addEventListener("toggle", reach, true);
  reach();

  // Tables: a button in each heading that can be sorted by.
  const number = (row, column) => {
    const value = row.cells[column].dataset.value;
    return value === undefined ? NaN : Number(value);
  };
  for (const heading of all("table.sortable th[data-sort]")) {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...heading.childNodes);
    heading.append(button);
    button.addEventListener("click", () => {
      const table = heading.closest("table");
      const down = heading.getAttribute("aria-sort") !== "descending";
      for (const other of all("th[aria-sort]", table)) other.removeAttribute("aria-sort");
      heading.setAttribute("aria-sort", down ? "descending" : "ascending");
      const column = heading.cellIndex;
      const rows = [...table.tBodies[0].rows];
      rows.sort((a, b) => {
        const [x, y] = [number(a, column), number(b, column)];
        if (isNaN(x) || isNaN(y)) return isNaN(x) - isNaN(y); // what is not known goes last
        return down ? y - x : x - y;
      });
      table.tBodies[0].append(...rows);
    });
  }

  // Questions: shown or not, in which order.
  const list = one("list");
  const questions = all("details.question", list).map((box) => ({
    box,
    number: Number(box.dataset.number),
    failed: "failed" in box.dataset,
    values: box.dataset.signed.split(" ").map((value) => (value === "" ? NaN : Number(value))),
    text: box.textContent.toLowerCase(),
  }));
  const fields = ["show", "better", "worse", "order", "words"].map(one);
  const [show, better, worse, order, words] = fields;

  // By how much the way `a` beats the way `b`, "" being any way; below 0 or NaN: it does not.
  const lead = (values, a, b) => {
    const known = values.filter((value) => !isNaN(value));
    const first = a === "" ? Math.max(...known) : values[a];
    const second = b === "" ? Math.min(...known) : values[b];
    return first - second;
  };
  const fits = (question) => {
    const difference = lead(question.values, better.value, worse.value);
    const wanted = words.value.toLowerCase().split(/\s+/).filter(Boolean);
    return (show.value !== "failed" || question.failed)
      && (show.value !== "differ" || lead(question.values, "", "") > 0)
      && ((better.value === "" && worse.value === "") || difference > 0)
      && wanted.every((word) => question.text.includes(word));
  };
  const refresh = () => {
    const byDifference = (a, b) =>
      (lead(b.values, better.value, worse.value) || 0) - (lead(a.values, better.value, worse.value) || 0);
    const sorted = [...questions].sort((a, b) =>
      (order.value === "difference" && byDifference(a, b)) || a.number - b.number);
    let count = 0;
    for (const question of sorted) {
      question.box.hidden = !fits(question);
      count += !question.box.hidden;
    }
    list.append(...sorted.map((question) => question.box));
    one("count").textContent = `${count} of ${questions.length} questions`;
    one("clear").hidden = count === questions.length;
    one("nothing").hidden = count > 0;
  };
  for (const field of fields) field.addEventListener("input", refresh);
  const filter = one("filter");
  filter.addEventListener("submit", (event) => event.preventDefault());
  filter.addEventListener("reset", () => setTimeout(refresh));
  one("open").addEventListener("click", (event) => {
    const opened = event.target.textContent === "Open all";
    for (const { box } of questions) if (!box.hidden) box.open = opened;
    event.target.textContent = opened ? "Close all" : "Open all";
  });
  refresh();

  // The matrix: each number leads to its questions.
  for (const cell of all("[data-better]")) {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = cell.textContent;
    const name = (index) => better.options[Number(index) + 1].text;
    button.setAttribute("aria-label",
      `${cell.textContent}: where ${name(cell.dataset.better)} beats ${name(cell.dataset.worse)}`);
    button.addEventListener("click", () => {
      filter.reset();
      better.value = cell.dataset.better;
      worse.value = cell.dataset.worse;
      refresh();
      one("questions").scrollIntoView();
      better.focus({ preventScroll: true });
    });
    cell.replaceChildren(button);
  }

  // On paper nothing can be opened.
  const folds = all("details.fold");
  addEventListener("beforeprint", () => folds.forEach((fold) => {
    fold.dataset.was = fold.open;
    fold.open = true;
  }));
  addEventListener("afterprint", () => folds.forEach((fold) => {
    fold.open = fold.dataset.was === "true";
  }));
})();
