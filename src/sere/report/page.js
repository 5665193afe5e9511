"use strict";
// Draws the plots from the data beside them, with the colors of the theme, and again when that changes.
(() => {
  const root = document.documentElement;
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const plots = [...document.querySelectorAll("script[data-plot]")].map((element) => ({
    id: element.dataset.plot,
    text: element.textContent,
  }));
  const options = {
    displaylogo: false,
    responsive: true,
    modeBarButtons: [["toImage"], ["zoom2d", "pan2d", "zoomIn2d", "zoomOut2d", "resetScale2d"]],
    toImageButtonOptions: { format: "svg" },
  };

  function draw() {
    const style = getComputedStyle(root);
    for (const { id, text } of plots) {
      const colored = text.replace(/var\((--\w+)\)/g, (_, name) => style.getPropertyValue(name).trim());
      const { data, layout } = JSON.parse(colored);
      Plotly.react(id, data, layout, options);
    }
  }

  document.getElementById("theme").addEventListener("click", () => {
    const now = root.dataset.theme || (dark.matches ? "dark" : "light");
    root.dataset.theme = now === "dark" ? "light" : "dark";
    draw();
  });
  dark.addEventListener("change", draw);
  draw();
})();
