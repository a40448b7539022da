"use strict";
// Values of the mark under the pointer. Vega calls `show` with what a specification's tooltip says.
const tooltip = (() => {
  const element = document.getElementById("tip");

  function place(event) {
    const {width, height} = element.getBoundingClientRect();
    const left = Math.min(event.clientX + 12, innerWidth - width - 4);
    const above = event.clientY - height - 10;
    element.style.left = `${Math.max(4, left)}px`;
    element.style.top = `${above > 4 ? above : event.clientY + 16}px`;
  }

  function show(handler, event, item, value) {
    element.hidden = value === null || value === undefined || value === "";
    if (element.hidden) return;
    const entries = typeof value === "object" ? Object.entries(value) : [["", value]];
    element.replaceChildren(...entries.flatMap(([key, word]) =>
      [menus.make("b", {}, key), menus.make("span", {}, String(word))]));
    place(event);
  }
  return {show};
})();
