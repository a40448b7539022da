"use strict";
// The table of the shown runs. A view may have thousands of rows: they come in portions, as the reader scrolls.
const table = (() => {
  const PORTION = 200;
  const MEANINGS = {
    best: ["★", "best, better than every other shown run"],
    alike: ["≈", "not distinguishable from the best"],
    first: ["°", "best value, no interval"],
  };
  const {make} = menus;
  const element = document.getElementById("runs"), box = element.parentElement;
  const [head, body] = [element.tHead, element.tBodies[0]];
  const more = make("button", {type: "button", id: "more"});
  let rows = [], columns = [], found = new Map(), picked = "";

  function heading(column, sort) {
    const button = make("button", {type: "button"}, column.heading);
    button.dataset.column = column.key;
    const cell = make("th", {scope: "col", className: column.number ? "number" : "", title: column.about}, button);
    if (sort.replace(/^-/, "") === column.key) cell.ariaSort = sort.startsWith("-") ? "descending" : "ascending";
    return cell;
  }

  function cell(run, column) {
    const mark = found.get(`${run.id} ${column.key}`);
    const made = make("td", {className: `${column.number ? "number" : ""} ${mark ?? ""}`.trim()});
    if (mark) {
      const [sign, meaning] = MEANINGS[mark];
      made.append(make("span", {className: "sign", ariaHidden: "true"}, sign));
      made.append(make("span", {className: "unseen"}, `${meaning}: `));
    }
    made.append(run.words(column));
    return made;
  }

  function line(run) {
    const button = make("button", {type: "button", tabIndex: -1, ariaPressed: String(run.id === picked)}, run.name);
    const cells = columns.slice(1).map(column => cell(run, column));
    const made = make("tr", {}, make("th", {scope: "row"}, button), ...cells);
    made.dataset.id = run.id;
    made.classList.toggle("picked", run.id === picked);
    return made;
  }

  // Appends the next rows; all that are left if `every`.
  function extend(every = false) {
    const drawn = body.rows.length;
    const next = rows.slice(drawn, every ? rows.length : drawn + PORTION).map(line);
    body.append(...next);
    more.textContent = `Show more (${body.rows.length} of ${rows.length} are in the table)`;
    more.hidden = body.rows.length === rows.length;
  }

  // Tab reaches one row: the picked one, else the first; arrows go on from there.
  function reachable(row) {
    body.querySelectorAll("button[tabindex='0']").forEach(each => { each.tabIndex = -1; });
    const button = (row ?? body.rows[0])?.querySelector("button");
    if (button) button.tabIndex = 0;
    return button;
  }

  function pick(id) {
    picked = id;
    for (const row of body.rows) {
      const is = row.dataset.id === id;
      row.classList.toggle("picked", is);
      row.querySelector("button").ariaPressed = String(is);
    }
    reachable(body.querySelector("tr.picked"));
  }

  // Brings a run's row into view, drawing the rows above it where they are not there yet.
  function reveal(id) {
    const place = rows.findIndex(run => run.id === id);
    while (place >= body.rows.length) extend();
    const row = body.rows[place];
    if (!row) return;
    const above = row.offsetTop - head.offsetHeight, below = row.offsetTop + row.offsetHeight - box.clientHeight;
    if (box.scrollTop > above || box.scrollTop < below) box.scrollTop = above;
  }

  function draw(runs, view) {
    [rows, columns] = [runs, choose.columns(view)];
    found = marks.of(runs, columns);
    if (columns[0]?.key !== "run") columns = [...data.columns.slice(0, 1), ...columns];
    head.replaceChildren(make("tr", {}, ...columns.map(column => heading(column, view.sort))));
    picked = view.picked;
    body.replaceChildren();
    extend();
    reachable(body.querySelector("tr.picked"));
  }

  function move(event) {
    const row = event.target.closest("tbody tr");
    const step = {ArrowDown: 1, ArrowUp: -1}[event.key];
    if (!row || !step) return;
    event.preventDefault();
    if (!body.rows[row.sectionRowIndex + step]) extend();
    const next = body.rows[row.sectionRowIndex + step];
    if (next) reachable(next).focus();
  }

  function start({sort, pickRow}) {
    box.after(more);
    more.addEventListener("click", () => extend());
    box.addEventListener("scroll", () => {
      if (box.scrollTop + 2 * box.clientHeight > element.offsetHeight && !more.hidden) extend();
    }, {passive: true});
    head.addEventListener("click", event => {
      const {column} = event.target.dataset;
      if (column) sort(column);
      head.querySelector(`[data-column="${column}"]`)?.focus();
    });
    body.addEventListener("click", event => {
      const row = event.target.closest("tr");
      if (row && !String(getSelection())) pickRow(row.dataset.id);
    });
    body.addEventListener("keydown", move);
  }

  return {start, draw, pick, reveal, extend, shown: () => ({rows, columns, marks: found})};
})();
