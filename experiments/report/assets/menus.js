"use strict";
// Menus of several choices: a disclosure with checkboxes, for each filter and for the columns.
const menus = (() => {
  const make = (name, properties, ...children) => {
    const element = Object.assign(document.createElement(name), properties);
    element.append(...children);
    return element;
  };

  // Options are {value, label, about}. `change` gets the values that are checked, in the order of the options.
  function menu(heading, options, change) {
    const boxes = options.map(({value}) => make("input", {type: "checkbox", value}));
    const labels = options.map(({label, about}, index) =>
      make("label", {}, boxes[index], label, ...(about ? [make("small", {}, ` ${about}`)] : [])));
    const summary = make("summary", {});
    const element = make("details", {className: "menu", name: "menus"}, summary,
      make("fieldset", {}, make("legend", {className: "unseen"}, heading), ...labels));
    const checked = () => boxes.filter(box => box.checked).map(box => box.value);
    boxes.forEach(box => box.addEventListener("change", () => change(checked())));
    return {element, show(values, words, active) {
      boxes.forEach(box => { box.checked = values.includes(box.value); });
      summary.textContent = `${heading}: ${words}`;
      summary.classList.toggle("active", active);
    }};
  }

  const words = values => !values.length ? "all" : values.length < 3 ? values.join(", ") : `${values.length} chosen`;

  // Makes all menus; returns a function that shows a view in them.
  function start(change) {
    const filters = data.filters.map(({key, heading, values}) =>
      menu(heading, values.map(value => ({value, label: value})), chosen => change({filter: key, values: chosen})));
    document.getElementById("filters").append(...filters.map(each => each.element));
    const options = data.columns.map(({key, heading, about}) => ({value: key, label: heading, about}));
    const columns = menu("columns", options, values => change({columns: values}));
    document.getElementById("columns").append(columns.element);
    return view => {
      filters.forEach((each, index) => {
        const values = view.chosen[data.filters[index].key];
        each.show(values, words(values), values.length > 0);
      });
      const shown = choose.columns(view).map(column => column.key);
      columns.show(shown, `${shown.length} of ${data.columns.length}`, view.columns.length > 0);
    };
  }

  // Escape and a click elsewhere close an open menu.
  const close = () => {
    const open = document.querySelector("details.menu[open]");
    if (open?.contains(document.activeElement)) open.querySelector("summary").focus();
    if (open) open.open = false;
    return open;
  };
  document.addEventListener("pointerdown", event => {
    if (!event.target.closest?.("details.menu")) close();
  });
  return {start, close, make};
})();
