// Draws the charts: all else works without scripts.
(() => {
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

  function draw(box) {
    const data = JSON.parse(box.dataset.series);
    const axis = { stroke: colour("--soft"), grid: { stroke: colour("--line"), width: 1 }, ticks: { show: false }, font: "11px system-ui" };
    box.replaceChildren();
    new uPlot({
      width: box.clientWidth, height: 130, cursor: { show: false }, legend: { show: false },
      scales: { y: { range: (_, low, high) => [0, Math.max(high, 4)] } },
      axes: [{ ...axis, values: (_, ticks) => ticks.map((at) => new Date(at * 1000).toTimeString().slice(0, 5)), size: 26 }, { ...axis, size: 44 }],
      series: [
        {},
        { label: "done", stroke: colour("--good"), width: 1.5, fill: colour("--good-ground") },
        { label: "failed", stroke: colour("--bad"), width: 1.5 },
      ],
    }, data, box);
  }

  function drawAll() {
    for (const box of document.querySelectorAll(".chart[data-series]")) {
      box.style.display = "block";
      draw(box);
    }
  }

  document.addEventListener("DOMContentLoaded", drawAll);
  document.addEventListener("htmx:afterSettle", drawAll);
  window.addEventListener("resize", drawAll);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
})();
