"use strict";
const root = document.documentElement;
const prefersDark = matchMedia("(prefers-color-scheme: dark)");
const charts = JSON.parse(document.getElementById("charts").textContent);

function draw() {
  const style = getComputedStyle(root);
  const [ink, line, back] = ["--ink", "--line", "--back"].map((name) => style.getPropertyValue(name).trim());
  for (const [name, { data, layout }] of Object.entries(charts)) {
    layout.font = { color: ink, family: style.fontFamily };
    layout.hoverlabel = { ...layout.hoverlabel, bgcolor: back, bordercolor: line, font: { color: ink } };
    for (const key of Object.keys(layout).filter((key) => /^[xy]axis\d*$/.test(key)))
      Object.assign(layout[key], { gridcolor: line, linecolor: line });
    Plotly.react(`chart-${name}`, data, layout, { responsive: true, displaylogo: false });
  }
}

document.getElementById("theme").addEventListener("click", () => {
  const dark = (root.dataset.theme || (prefersDark.matches ? "dark" : "light")) === "dark";
  root.dataset.theme = dark ? "light" : "dark";
  draw();
});
prefersDark.addEventListener("change", draw);
draw();
