"use strict";
// Draws heat maps of layers where their section is opened: those of the first runs that the table shows.
const maps = (() => {
  const MOST = 12, SHADES = 32;
  const WORDS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

  // Positions on the scale from 0 to 1, row by row; null for a layer that there is not.
  function unpack(text) {
    return [...text].map(each => each === "." ? null : WORDS.indexOf(each) / (WORDS.length - 1));
  }

  function valueAt(position, {low, high, log}) {
    const value = log ? low * (high / low) ** position : low + (high - low) * position;
    return Number(value.toPrecision(2)).toString();
  }

  function element(name, attributes, ...children) {
    const made = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    made.append(...children);
    return made;
  }

  function rectangle(position, k, figure) {
    const width = 100 / figure.blocks.length, column = k % figure.blocks.length;
    return element("rect", {
      x: `${width * column}%`, y: figure.cell * Math.floor(k / figure.blocks.length), width: `${width}%`,
      height: figure.cell, class: `h${Math.min(SHADES - 1, Math.floor(position * SHADES))}`,
      "data-v": `≈ ${valueAt(position, figure)}`,
    });
  }

  function draw(name, text, figure) {
    const {kinds, blocks, cell} = figure, height = cell * kinds.length;
    const every = Math.max(1, Math.ceil(blocks.length / 8));
    const cells = unpack(text).flatMap((position, k) => position === null ? [] : [rectangle(position, k, figure)]);
    const down = kinds.map((kind, k) =>
      element("text", {x: "0%", y: cell * k + 12, dx: -6, "text-anchor": "end"}, kind));
    const across = blocks.flatMap((block, k) => k % every ? [] : [
      element("text", {x: `${100 / blocks.length * (k + 0.5)}%`, y: height + 14, "text-anchor": "middle"}, block)]);
    const plot = document.createElement("div"), heading = document.createElement("h5");
    plot.className = "plot";
    heading.textContent = name;
    plot.append(element("svg", {
      width: "100%", height,
      "data-kinds": kinds.join("|"), "data-blocks": blocks.join("|"), "data-run": name,
    }, ...cells, ...down, ...across));
    const map = document.createElement("div");
    map.className = "map";
    map.append(heading, plot);
    return map;
  }

  function fill(details) {
    if (!details.open) return;
    const figure = JSON.parse(details.querySelector("script").textContent);
    const shown = [...document.getElementById("runs").tBodies[0].rows]
      .filter(row => !row.hidden && Object.hasOwn(figure.runs, row.dataset.id)).slice(0, MOST);
    details.querySelector(".grid-of-maps").replaceChildren(
      ...shown.map(row => draw(row.cells[0].textContent, figure.runs[row.dataset.id], figure)));
  }

  const fillAll = () => document.querySelectorAll("details.maps").forEach(fill);
  return {unpack, valueAt, fill, fillAll};
})();
