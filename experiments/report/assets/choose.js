"use strict";
// Which runs a view shows, and in which order. Pure functions of the view.
const choose = (() => {
  const collator = new Intl.Collator("en", {numeric: true});

  // A run is shown if it has all the words and, of every filter with choices, one of them.
  function shown(view) {
    const words = view.words.toLowerCase().split(/\s+/).filter(Boolean);
    const wanted = data.filters.map(filter => view.chosen[filter.key]);
    return data.runs.filter(run =>
      wanted.every((values, index) => !values.length || values.includes(run.filters[index]))
      && words.every(word => data.searched(run).includes(word)));
  }

  // Empty cells go last, whichever way is sorted.
  function sorted(runs, sort) {
    const column = data.columns.find(each => each.key === sort.replace(/^-/, ""));
    if (!column) return runs;
    const sign = sort.startsWith("-") ? -1 : 1;
    const order = column.number ? (a, b) => a - b : collator.compare;
    return runs.map(run => [run, run.sort(column)]).sort(([, a], [, b]) =>
      a === null || b === null ? (a === null) - (b === null) : sign * order(a, b)).map(([run]) => run);
  }

  const columns = view => data.columns.filter(column =>
    view.columns.length ? view.columns.includes(column.key) : column.usual);
  return {shown, sorted, columns};
})();
