// Charts, what keeps the parts that are asked for again in place, and the keyboard's way to what scrolls sideways: all
// else works without scripts.
(() => {
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const clock = (at) => new Date(at * 1000).toTimeString().slice(0, 5);
  const short = (number) => Intl.NumberFormat("en", { notation: "compact" }).format(number);
  const count = (_, number) => number === null ? "" : number.toLocaleString("en");
  const plots = new Map();

  function draw(box) {
    const data = JSON.parse(box.dataset.series);
    const axis = { stroke: colour("--soft"), grid: { stroke: colour("--line"), width: 1 }, ticks: { show: false }, font: "11px system-ui" };
    plots.get(box)?.destroy();
    box.style.display = "block";
    plots.set(box, new uPlot({
      width: box.clientWidth, height: 130, cursor: { points: { show: false }, drag: { x: false, y: false } }, legend: { live: true },
      scales: { y: { range: (_, low, high) => [0, Math.max(high, 4)] } },
      axes: [{ ...axis, values: (_, ticks) => ticks.map(clock), size: 26 }, { ...axis, values: (_, ticks) => ticks.map(short), size: 44 }],
      series: [
        { label: "", value: (_, at) => at === null ? "" : `from ${clock(at)}` },
        { label: "done", stroke: colour("--good"), width: 1.5, fill: colour("--good-ground"), value: count },
        { label: "failed", stroke: colour("--bad"), width: 1.5, value: count },
      ],
    }, data, box));
  }

  const boxes = (selector) => [...document.querySelectorAll(selector)];
  const drawNew = () => {
    for (const box of plots.keys()) if (!box.isConnected) { plots.get(box).destroy(); plots.delete(box); }
    boxes(".chart[data-series]:empty").forEach(draw);
  };
  const drawAll = () => boxes(".chart[data-series]").forEach(draw);

  // Read out once, when it changes: not with every look.
  function say() {
    const said = document.getElementById("said"), verdict = document.getElementById("verdict");
    if (said && verdict && said.textContent !== verdict.textContent) said.textContent = verdict.textContent;
  }

  function reachAll() {
    for (const box of boxes(".wide")) {
      const scrolls = box.scrollWidth > box.clientWidth;
      for (const [name, value] of [["tabindex", "0"], ["role", "region"], ["aria-label", "Table, scrolls sideways"]]) {
        if (scrolls) box.setAttribute(name, value);
        else box.removeAttribute(name);
      }
    }
  }

  function chooseAll() {
    for (const all of boxes("[data-choose-all]")) {
      all.hidden = false;
      all.addEventListener("change", () => {
        all.closest("table").querySelectorAll("tbody [type=checkbox]").forEach((each) => { each.checked = all.checked; });
      });
    }
  }

  document.addEventListener("DOMContentLoaded", () => { drawAll(); reachAll(); say(); chooseAll(); });
  document.addEventListener("htmx:afterSettle", reachAll);
  window.addEventListener("resize", () => { drawAll(); reachAll(); });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);

  // Nobody looks at a hidden tab: it asks for nothing, and at once when it is seen again.
  document.addEventListener("htmx:beforeRequest", (event) => {
    if (document.hidden && event.detail.elt.matches("[data-live]")) event.preventDefault();
  });
  document.addEventListener("visibilitychange", () => {
    if (!document.hidden) boxes("[data-live]").forEach((part) => htmx.trigger(part, "look"));
  });

  // What a person has opened, and where the keyboard is, stays across a swap.
  let kept = null;
  document.addEventListener("htmx:beforeSwap", (event) => {
    const part = event.detail.target, active = document.activeElement;
    if (!part.matches("[data-live]")) return;
    kept = { open: [...part.querySelectorAll("details[open][id]")].map((each) => each.id), focus: null };
    if (part.contains(active) || active.closest("#house")) {
      const details = active.closest("details[id]");
      const same = active.tagName === "SUMMARY" && details ? `#${details.id} > summary` : `[href="${CSS.escape(active.getAttribute("href") ?? "")}"]`;
      kept.focus = [same, boxes(same).indexOf(active)];
    }
  });
  document.addEventListener("htmx:afterSwap", (event) => {
    if (kept && event.detail.target.matches("[data-live]")) {
      kept.open.forEach((id) => document.getElementById(id)?.setAttribute("open", ""));
      const again = kept.focus && boxes(kept.focus[0])[kept.focus[1]];
      if (again && again !== document.activeElement) again.focus({ preventScroll: true });
      kept = null;
    }
    drawNew();
    say();
  });

  // Figures that are old must not look like new ones.
  document.addEventListener("htmx:afterRequest", (event) => {
    const stale = document.getElementById("stale");
    if (!stale || !event.detail.elt.matches("[data-live]")) return;
    if (event.detail.successful) { stale.hidden = true; return; }
    if (stale.hidden) stale.querySelector("b").textContent = new Date().toTimeString().slice(0, 8);
    stale.hidden = false;
  });
})();
