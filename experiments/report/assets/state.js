"use strict";
// The view that the reader has chosen, and its text in the address's fragment:
//   #method=sinq,rtn&bits=4&words=refined&sort=-perplexity&columns=run,perplexity&picked=0123456789ab&at=g1
// A link to it opens the same view. What is not in the fragment is as it was at first.
const state = (() => {
  const LISTS = data.filters.map(filter => filter.key);
  const fresh = () => ({
    words: "", sort: "", columns: [], picked: "", at: "", chosen: Object.fromEntries(LISTS.map(key => [key, []])),
  });

  const encode = word => encodeURIComponent(word).replace(/%20/g, "+").replace(/%3A/g, ":");
  const decode = word => {
    try { return decodeURIComponent(word.replace(/\+/g, " ")); } catch { return word; }
  };

  function write(view) {
    const parts = LISTS.map(key => [key, view.chosen[key].map(encode).join(",")]);
    parts.push(["words", encode(view.words)], ["sort", view.sort], ["columns", view.columns.join(",")]);
    parts.push(["picked", view.picked], ["at", view.at]);
    return parts.filter(([, value]) => value).map(([key, value]) => `${key}=${value}`).join("&");
  }

  // What the link asks for and the page does not have is left out, and said.
  function read(fragment) {
    const view = fresh(), unknown = [], columns = data.columns.map(each => each.key);
    const known = (key, values, all) => {
      values.filter(value => !all.includes(value)).forEach(value => unknown.push(`${key} ${value}`));
      return values.filter(value => all.includes(value));
    };
    for (const part of fragment.replace(/^#/, "").split("&").filter(Boolean)) {
      const [key, text = ""] = [part.slice(0, part.indexOf("=")), part.slice(part.indexOf("=") + 1)];
      const filter = data.filters.find(each => each.key === key);
      const values = text.split(",").filter(Boolean).map(decode);
      if (filter) view.chosen[key] = known(filter.heading, values, filter.values);
      else if (key === "words") view.words = decode(text);
      else if (key === "sort") view.sort = known("column", [text.replace(/^-/, "")], columns).length ? text : "";
      else if (key === "columns") view.columns = known("column", values, columns);
      else if (key === "picked") [view.picked = ""] = known("run", values, [...data.byId.keys()]);
      else if (key === "at") view.at = decode(text);
      else unknown.push(part);
    }
    return {view, unknown};
  }
  return {fresh, read, write};
})();
