"use strict";
// Puts a view on the page, and turns what the reader does into the next view. The address always has the view.
(() => {
  const by = id => document.getElementById(id);
  const say = words => { by("said").textContent = words; };
  let view = state.fresh(), typing = false;

  const put = (text, name) => copy.put(text).then(
    () => say(`Copied ${name}.`), error => say(`Could not copy ${name}: ${error.message}.`));

  // Sections of groups without a shown run are hidden, and so are the links to them.
  function showSections(runs) {
    const there = new Set(runs.map(run => run.group));
    for (const {key} of data.groups) {
      by(key).hidden = !there.has(key);
      document.querySelector(`nav a[data-at="${key}"]`).hidden = !there.has(key);
    }
  }

  function showRuns() {
    const runs = choose.sorted(choose.shown(view), view.sort), all = data.runs.length;
    table.draw(runs, view);
    showSections(runs);
    showMenus(view);
    by("count").textContent = runs.length === all ? `${all} runs` : `${runs.length} of ${all} runs`;
    by("reset").hidden = runs.length === all;
    if (by("words").value !== view.words) by("words").value = view.words;
    figures.update(runs, view.picked);
  }

  function showPicked() {
    const run = data.byId.get(view.picked);
    table.pick(view.picked);
    for (const row of document.querySelectorAll("#leaderboard [data-run]")) {
      row.classList.toggle("picked", row.dataset.run === view.picked);
    }
    if (run) table.reveal(run.id);
    panel.show(run, {put, close: () => pick("")});
  }

  // Takes the next view; a further letter of a search replaces the address, all else adds to the history.
  function go(changes, {letter = false} = {}) {
    view = {...view, ...changes};
    const fragment = state.write(view);
    const address = fragment ? `#${fragment}` : location.pathname + location.search;
    if (letter && typing) history.replaceState(null, "", address);
    else history.pushState(null, "", address);
    typing = letter;
    by("notice").hidden = true;
  }

  function pick(id) {
    if (id === view.picked) return;
    const focused = document.activeElement.closest("#panel");
    go({picked: id});
    showPicked();
    figures.update(table.shown().rows, id);
    if (focused) by("runs").querySelector("tbody button[tabindex='0']")?.focus({preventScroll: true});
    const name = data.byId.get(id)?.name;
    say(id ? `Picked ${name}. Its options are at the end of the page; Escape unpicks it.` : "No run is picked.");
  }

  function sort(key) {
    const column = data.columns.find(each => each.key === key);
    const first = column.better === "high" ? `-${key}` : key;
    const other = first === key ? `-${key}` : key;
    go({sort: view.sort === first ? other : first});
    showRuns();
    say(`Sorted by ${column.heading}, ${view.sort.startsWith("-") ? "falling" : "rising"}.`);
  }

  function choices({filter, values, columns}) {
    go(filter ? {chosen: {...view.chosen, [filter]: values}} : {columns});
    showRuns();
  }

  // Shows the view of the address: at first, after Back, and when a link is pasted.
  function follow() {
    const {view: linked, unknown} = state.read(location.hash), before = view.at;
    [view, typing] = [linked, false];
    by("notice").textContent = `The link asks for what is not on this page: ${unknown.join("; ")}.`;
    by("notice").hidden = !unknown.length;
    showRuns();
    showPicked();
    if (view.at && view.at !== before) by(view.at)?.scrollIntoView();
  }

  async function print() {
    table.extend(true);
    await figures.forPrint(true);
    window.print();
  }

  const showMenus = menus.start(choices);
  table.start({sort, pickRow: id => pick(view.picked === id ? "" : id)});
  figures.start(pick);
  by("words").addEventListener("input", event => {
    go({words: event.target.value}, {letter: true});
    showRuns();
  });
  by("reset").addEventListener("click", () => {
    go({words: "", chosen: state.fresh().chosen});
    showRuns();
    by("words").focus();
  });
  for (const [name, write] of Object.entries({Markdown: copy.markdown, LaTeX: copy.booktabs, CSV: copy.csv})) {
    by(`copy-${name.toLowerCase()}`).addEventListener("click", () =>
      put(write(table.shown()), `${table.shown().rows.length} runs as ${name}`));
  }
  document.querySelectorAll("nav a").forEach(link => link.addEventListener("click", event => {
    event.preventDefault();
    go({at: link.dataset.at});
    by(view.at).scrollIntoView();
  }));
  document.querySelectorAll("[data-pick]").forEach(button => {
    button.addEventListener("click", () => pick(view.picked === button.dataset.pick ? "" : button.dataset.pick));
  });
  by("print").addEventListener("click", print);
  addEventListener("beforeprint", () => {
    table.extend(true);
    document.querySelectorAll("main section > details").forEach(each => { each.open = true; });
  });
  addEventListener("afterprint", () => figures.forPrint(false));
  addEventListener("popstate", follow);
  addEventListener("keydown", event => {
    if ((event.ctrlKey || event.metaKey) && event.key === "p") {
      event.preventDefault();
      print();
    }
    if (event.key === "Escape" && !menus.close()) pick("");
  });
  follow();
})();
