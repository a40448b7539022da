"use strict";
// The picked run: its numbers, options (those that differ from the defaults first), command and provenance.
const panel = (() => {
  const {make} = menus;
  const element = document.getElementById("panel");
  const list = entries =>
    make("dl", {}, ...entries.flatMap(([key, value]) => [make("dt", {}, key), make("dd", {}, value)]));
  const part = (heading, ...children) => make("section", {}, make("h3", {}, heading), ...children);

  function folded(heading, entries) {
    const summary = make("summary", {}, `${heading} (${entries.length})`);
    return entries.length ? [make("details", {}, summary, list(entries))] : [];
  }

  function command(words, put) {
    if (!words) return [make("p", {className: "note"}, "The row does not say it.")];
    const button = make("button", {type: "button", onclick: () => put(words, "the command")}, "Copy command");
    return [make("pre", {tabIndex: 0}, words), button];
  }

  // Shows a run; hides the panel for none.
  function show(run, {put, close}) {
    element.hidden = !run;
    document.body.classList.toggle("has-panel", Boolean(run));
    if (!run) return element.replaceChildren();
    const {chosen, others, provenance, command: words} = data.details(run);
    const numbers = data.columns.slice(2).filter(column => run.words(column) !== data.ABSENT)
      .map(column => [column.heading, run.words(column)]);
    element.replaceChildren(
      make("header", {}, make("h2", {}, run.name),
        make("p", {className: "note"}, `${data.title(run.group)}; run `, make("code", {}, run.id)),
        make("button", {type: "button", onclick: () => put(location.href, "the link")}, "Copy link"),
        make("button", {type: "button", onclick: close, title: "Escape"}, "Close")),
      make("div", {className: "parts"},
        part("Options", list(chosen), ...folded("Others", others)),
        part("Numbers", list(numbers)),
        part("Command", ...command(words, put)),
        part("Provenance", list(provenance))));
    element.scrollTop = 0;
  }
  return {show};
})();
