"use strict";
// Sorts and filters the table, and shows what lies under the pointer. Everything else on the page works without this.
(() => {
  const table = document.getElementById("runs");
  const body = table.tBodies[0];
  const headings = [...table.tHead.rows[0].cells];

  // Empty cells go last, whichever way is sorted. A second click on a heading turns the order round.
  function sortBy(column) {
    const heading = headings[column];
    const sign = heading.getAttribute("aria-sort") === "ascending" ? -1 : 1;
    const isNumber = heading.classList.contains("number");
    const key = row => row.cells[column].dataset.v ?? row.cells[column].textContent;
    const order = (a, b) => isNumber ? Number(a) - Number(b) : a.localeCompare(b, "en", {numeric: true});
    const rows = [...body.rows].sort((one, other) => {
      const [a, b] = [key(one), key(other)];
      return a === "" || b === "" ? (a === "") - (b === "") : sign * order(a, b);
    });
    body.append(...rows);
    headings.forEach(each => each.removeAttribute("aria-sort"));
    heading.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
    maps.fillAll();
  }
  headings.forEach((heading, column) => heading.querySelector("button").addEventListener("click", () => sortBy(column)));

  // A row is shown when it has all the words and is what every menu asks for.
  const search = document.getElementById("words");
  const menus = [...document.querySelectorAll("select[data-filter]")];
  function filter() {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const row of body.rows) {
      const text = row.textContent.toLowerCase();
      const fits = words.every(word => text.includes(word))
        && menus.every(menu => !menu.value || row.dataset[`f${menu.dataset.filter}`] === menu.value);
      row.hidden = !fits;
      shown += fits;
    }
    const all = body.rows.length;
    document.getElementById("count").textContent = shown === all ? `${all} runs` : `${shown} of ${all} runs`;
    maps.fillAll();
  }
  search.addEventListener("input", filter);
  menus.forEach(menu => menu.addEventListener("change", filter));

  document.querySelectorAll("details.maps").forEach(each => {
    maps.fill(each);
    each.addEventListener("toggle", () => maps.fill(each));
  });

  document.querySelectorAll(".mark").forEach(mark => {
    mark.setAttribute("tabindex", 0);
    mark.setAttribute("role", "img");
  });
  const tip = document.getElementById("tip");
  function words(target) {
    if (target.classList.contains("mark")) return target.getAttribute("aria-label");
    if (!target.dataset.v || target.tagName !== "rect") return null;
    const map = target.ownerSVGElement;
    const [kinds, blocks] = [map.dataset.kinds.split("|"), map.dataset.blocks.split("|")];
    const row = Math.round(target.getAttribute("y") / target.getAttribute("height"));
    const column = Math.round(parseFloat(target.getAttribute("x")) / 100 * blocks.length);
    return `${map.dataset.run}\n${kinds[row]}, block ${blocks[column]}: ${target.dataset.v}`;
  }
  function show(event) {
    const said = event.target instanceof SVGElement ? words(event.target) : null;
    tip.hidden = !said;
    if (!said) return;
    tip.textContent = said;
    const [mark, own] = [event.target.getBoundingClientRect(), tip.getBoundingClientRect()];
    tip.style.left = `${Math.max(4, Math.min(mark.right + 8, innerWidth - own.width - 4))}px`;
    tip.style.top = `${mark.top - own.height - 6 > 0 ? mark.top - own.height - 6 : mark.bottom + 6}px`;
  }
  document.addEventListener("pointerover", show);
  document.addEventListener("focusin", show);
  document.addEventListener("focusout", () => { tip.hidden = true; });
})();
