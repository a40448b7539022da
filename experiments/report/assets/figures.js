"use strict";
// Figures: each is drawn when it comes near the window, from its own JSON, with the rows of the shown runs.
// Filters change the rows of a drawn figure, and the picked run a parameter of it; one out of sight waits.
const figures = (() => {
  const CANVAS_FROM = 300; // rows; a canvas is faster with many marks, SVG is sharper with few
  const ERRORS = 1; // Vega warns of every layer without marks, such as the ring around no picked run
  const themes = data.read("themes"), dark = matchMedia("(prefers-color-scheme: dark)");
  const WAIT = 40; // milliseconds from the last change to the figures, so that the table never waits for them
  let order = new Map(), picked = "", pickRun = () => {}, printed = false, timer = 0, queue = Promise.resolve();

  const every = [...document.querySelectorAll("figure[data-figure]")].map(element => ({
    element, box: element.querySelector(".view"), near: false, stale: true, embedded: null, theme: "",
  }));
  const of = element => every.find(figure => figure.element === element);

  function contentOf(figure) {
    figure.content ??= JSON.parse(figure.element.querySelector("script").textContent);
    return figure.content;
  }

  // Rows of shown runs, in the order of the table, after the references: these have no run, and no filter takes them.
  function kept(figure) {
    const place = row => (row.run ?? null) === null ? -1 : order.get(row.run);
    return contentOf(figure).rows.filter(row => place(row) !== undefined).sort((a, b) => place(a) - place(b));
  }

  // To a screen reader a figure is one image with a description: the numbers of its marks are in the table.
  async function embed(figure, rows, theme) {
    figure.embedded?.finalize();
    const renderer = contentOf(figure).rows.length > CANVAS_FROM ? "canvas" : "svg";
    const options = {
      mode: "vega-lite", actions: false, defaultStyle: false, logLevel: ERRORS, renderer, config: themes[theme],
      tooltip: tooltip.show,
    };
    figure.embedded = await vegaEmbed(figure.box, {...contentOf(figure).spec, datasets: {rows}}, options);
    figure.box.querySelector("svg, canvas").ariaHidden = "true";
    figure.embedded.view.addEventListener("click", (event, item) => {
      if (item?.datum?.run) pickRun(item.datum.run);
    });
  }

  async function refresh(figure) {
    if (!figure.stale) return;
    figure.stale = false;
    const rows = kept(figure), theme = dark.matches && !printed ? "dark" : "light";
    try {
      if (figure.theme !== theme) await embed(figure, rows, theme);
      else figure.embedded.view.data("rows", rows);
      figure.theme = theme;
      await figure.embedded.view.signal("picked", picked).resize().runAsync();
      figure.element.dataset.drawn = rows.length;
    } catch (error) {
      console.error(error);
      figure.theme = ""; // to be drawn anew
      figure.box.textContent = `This figure cannot be drawn: ${error.message}`;
    }
  }

  // One figure after the other, so that the first is there before the last is begun.
  const soon = figure => {
    queue = queue.then(() => refresh(figure));
    return queue;
  };
  const isThere = figure => figure.element.checkVisibility();

  function changed() {
    every.forEach(figure => { figure.stale = true; });
    clearTimeout(timer);
    timer = setTimeout(() => every.filter(figure => figure.near && isThere(figure)).forEach(soon), WAIT);
  }

  function update(runs, run) {
    order = new Map(runs.map(({id}, index) => [id, index]));
    picked = run;
    changed();
  }

  // Draws all figures of shown sections, near the window or not.
  const drawAll = () => Promise.all(every.filter(isThere).map(soon));

  // Draws them on white; `false` goes back to the reader's theme.
  function forPrint(now) {
    printed = now;
    changed();
    return now ? drawAll() : null;
  }

  async function save(figure, kind) {
    await soon(figure);
    const link = menus.make("a", {href: await figure.embedded.view.toImageURL(kind, 2), download: `${figure.element.id}.${kind}`});
    link.click();
  }

  function start(pick) {
    pickRun = pick;
    const observer = new IntersectionObserver(entries => entries.forEach(entry => {
      const figure = of(entry.target);
      figure.near = entry.isIntersecting;
      if (figure.near) soon(figure);
    }), {rootMargin: "300px"});
    every.forEach(figure => {
      observer.observe(figure.element);
      figure.element.querySelectorAll("button[data-save]").forEach(button =>
        button.addEventListener("click", () => save(figure, button.dataset.save)));
    });
    dark.addEventListener("change", changed);
    addEventListener("resize", changed); // Vega follows the width; a legend has another height then
  }
  return {start, update, drawAll, forPrint};
})();
