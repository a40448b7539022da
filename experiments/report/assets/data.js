"use strict";
// The report's data as the other scripts read it: columns, filters, runs. See page_data.py for how it is packed.
const data = (() => {
  const read = id => JSON.parse(document.getElementById(id).textContent);
  const {columns, filters, groups, runs, texts} = read("data");
  const ABSENT = "–";

  const pairs = numbers => numbers.map(number => {
    const [, key, value] = /^([^\t]*)\t([^]*)$/.exec(texts[number]);
    return [key, value];
  });

  columns.forEach((column, index) => { column.index = index; });
  for (const run of runs) {
    // A cell is null, words, or words and the number that they are sorted by.
    const cell = column => run.cells[column.index];
    run.words = column => (Array.isArray(cell(column)) ? cell(column)[0] : cell(column)) ?? ABSENT;
    run.sort = column => Array.isArray(cell(column)) ? cell(column)[1] : column.number ? null : cell(column);
    run.name = run.cells[0];
  }

  // Everything that a search looks through; made once, at the first search.
  function searched(run) {
    run.text ??= [...columns.map(run.words), run.id].join(" ").toLowerCase();
    return run.text;
  }

  // Options that differ from the defaults, the others, command and provenance of a run.
  function details(run) {
    const [command, chosen, others, provenance] = run.details;
    return {command, chosen: pairs(chosen), others: pairs(others), provenance: pairs(provenance)};
  }

  const byId = new Map(runs.map(run => [run.id, run]));
  const title = key => groups.find(group => group.key === key).title;
  return {ABSENT, columns, filters, groups, runs, byId, title, searched, details, read};
})();
