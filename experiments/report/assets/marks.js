"use strict";
// The best of each column among the shown runs of a group, with its significance.
// Dense models and noise floors take no part.
//   best   better than every other shown run: by the paired 95 % intervals, or because the number is exact
//   alike  not distinguishable from the best value
//   first  the best value; the page has no interval of its difference to the others
const marks = (() => {
  const HUGE = 1e300; // an infinite perplexity, which is the largest number in JSON

  // Half of the paired interval is the distance of the two runs' vectors (significance.py).
  function isAlike(one, other) {
    const distance = Math.hypot(...one.slice(1).map((value, index) => value - other[index + 1]));
    return Math.abs(one[0] - other[0]) <= distance;
  }

  function ofColumn(runs, column, found) {
    const values = runs.filter(run => run.sort(column) !== null && Math.abs(run.sort(column)) < HUGE);
    if (values.length < 2) return;
    const sign = column.better === "low" ? 1 : -1;
    const lowest = Math.min(...values.map(run => sign * run.sort(column)));
    const best = values.filter(run => sign * run.sort(column) === lowest);
    const set = (run, mark) => found.set(`${run.id} ${column.key}`, mark);
    if (column.judged === "exact") return best.forEach(run => set(run, "best"));
    const vector = run => run.vectors[column.key];
    const measured = values.every(run => vector(run)?.length === vector(best[0])?.length && vector(run));
    if (column.judged !== "paired" || !measured) return best.forEach(run => set(run, "first"));
    const alike = values.filter(run => run !== best[0] && isAlike(vector(run), vector(best[0])));
    if (!alike.length) return set(best[0], "best");
    [best[0], ...alike].forEach(run => set(run, "alike"));
  }

  // Map of "id key" → mark.
  function of(runs, columns) {
    const found = new Map(), groups = new Map();
    for (const run of runs) {
      if (!run.ranked) continue;
      if (!groups.has(run.group)) groups.set(run.group, []);
      groups.get(run.group).push(run);
    }
    for (const each of groups.values()) {
      for (const column of columns) if (column.better) ofColumn(each, column, found);
    }
    return found;
  }
  return {of};
})();
