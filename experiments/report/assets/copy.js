"use strict";
// The shown runs and columns as text: Markdown and LaTeX with the words of the table, CSV with its numbers.
const copy = (() => {
  const NOTE = {best: "", alike: "≈ ", first: ""};
  const LATEX = {"\\": "\\textbackslash{}", "~": "\\textasciitilde{}", "^": "\\textasciicircum{}",
    "–": "--", "−": "$-$", "≈": "$\\approx$", "×": "$\\times$", "→": "$\\to$", "Δ": "$\\Delta$"};
  const latex = text => text.replace(/[\\~^–−≈×→Δ]|[&%$#_{}]/g, each => LATEX[each] ?? `\\${each}`);

  function cells({rows, columns, marks}, word) {
    return rows.map(run => columns.map(column => word(run, column, marks.get(`${run.id} ${column.key}`))));
  }

  function markdown(shown) {
    const escape = text => text.replace(/\|/g, "\\|");
    const word = (run, column, mark) => {
      const text = escape(`${NOTE[mark] ?? ""}${run.words(column)}`);
      return mark === "best" ? `**${text}**` : text;
    };
    const line = words => `| ${words.join(" | ")} |`;
    return [line(shown.columns.map(column => escape(column.heading))),
      line(shown.columns.map(column => column.number ? "---:" : "---")), ...cells(shown, word).map(line)].join("\n");
  }

  function booktabs(shown) {
    const word = (run, column, mark) => {
      const text = latex(`${NOTE[mark] ?? ""}${run.words(column)}`);
      return mark === "best" ? `\\textbf{${text}}` : text;
    };
    const line = words => `${words.join(" & ")} \\\\`;
    const sides = shown.columns.map(column => column.number ? "r" : "l").join("");
    return [`\\begin{tabular}{${sides}}`, "\\toprule", line(shown.columns.map(column => latex(column.heading))),
      "\\midrule", ...cells(shown, word).map(line), "\\bottomrule", "\\end{tabular}"].join("\n");
  }

  function csv(shown) {
    const quoted = text => /[",\n]/.test(text) ? `"${text.replace(/"/g, '""')}"` : text;
    const exact = (run, column) => run.sort(column) ?? (run.words(column) === data.ABSENT ? "" : run.words(column));
    const lines = cells(shown, (run, column) => quoted(String(exact(run, column))));
    return [shown.columns.map(column => quoted(column.heading)), ...lines].map(each => each.join(",")).join("\n");
  }

  // A page that is served without TLS has no clipboard of its own: there the old way is left.
  async function put(text) {
    if (navigator.clipboard) return navigator.clipboard.writeText(text);
    const area = menus.make("textarea", {value: text});
    document.body.append(area);
    area.select();
    const done = document.execCommand("copy");
    area.remove();
    if (!done) throw new Error("this browser lets no page copy");
  }
  return {markdown, booktabs, csv, put};
})();
