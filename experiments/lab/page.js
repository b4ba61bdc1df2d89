"use strict";
(() => {
  const specs = JSON.parse(document.getElementById("specs").textContent);
  const themes = JSON.parse(document.getElementById("themes").textContent);
  const dark = window.matchMedia("(prefers-color-scheme: dark)");

  async function draw() {
    const config = dark.matches ? themes.dark : themes.light;
    const options = { mode: "vega-lite", renderer: "svg", config, actions: { export: true, source: false, compiled: false, editor: false } };
    const drawn = Object.entries(specs).map(([name, spec]) =>
      vegaEmbed(document.getElementById(name), spec, { ...options, downloadFileName: name }));
    const outcomes = await Promise.allSettled(drawn);
    const broken = outcomes.filter((outcome) => outcome.status === "rejected");
    broken.forEach((outcome) => console.error(outcome.reason));
    document.body.dataset.drawn = outcomes.length - broken.length;
    document.body.dataset.broken = broken.length;
  }

  function tabs(figure) {
    const buttons = [...figure.querySelectorAll(".tabs button")];
    const charts = [...figure.querySelectorAll(".chart")];
    const choose = (chosen) => {
      buttons.forEach((button, i) => button.setAttribute("aria-selected", String(i === chosen)));
      charts.forEach((chart, i) => { chart.hidden = i !== chosen; });
    };
    buttons.forEach((button, i) => button.addEventListener("click", () => choose(i)));
    if (buttons.length) choose(0);
  }

  function sortable(table) {
    const heads = [...table.querySelectorAll("th.sortable")];
    heads.forEach((head, column) => head.addEventListener("click", () => {
      const up = head.getAttribute("aria-sort") !== "ascending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      const key = (row) => row.children[column].dataset.value;
      const compare = (a, b) => {
        if (a === "" || b === "") return (a === "") - (b === "");
        const order = isNaN(a) || isNaN(b) ? a.localeCompare(b) : a - b;
        return up ? order : -order;
      };
      const body = table.tBodies[0];
      body.append(...[...body.rows].sort((a, b) => compare(key(a), key(b))));
    }));
  }

  document.querySelectorAll("figure").forEach(tabs);
  document.querySelectorAll("table").forEach(sortable);
  dark.addEventListener("change", draw);
  draw();
})();
