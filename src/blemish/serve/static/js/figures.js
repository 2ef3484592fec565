// The slider of the figures: false alarms and misses at any threshold, at once.

import { tell } from "./main.js";

const place = document.querySelector("#rates");
const slider = place?.querySelector("[data-slider]");

const percent = (value) => {
  if (value === null || value === undefined) return "–";
  const hundreds = 100 * value;
  if (hundreds > 0 && hundreds < 0.01) return `${hundreds.toFixed(3)} %`;
  return `${hundreds.toFixed(hundreds >= 10 || hundreds === 0 ? 0 : hundreds >= 1 ? 1 : 2)} %`;
};
const score = (value) => Number(value).toPrecision(4).replace("-", "−");

/** The threshold of the curve whose verdicts a threshold gives: the greatest not above it. */
function index(thresholds, value) {
  let [low, high] = [0, thresholds.length - 1];
  while (low < high) {
    const middle = Math.ceil((low + high) / 2);
    if (thresholds[middle] <= value) low = middle;
    else high = middle - 1;
  }
  return low;
}

function show(curve, value) {
  const at = index(curve.thresholds, value);
  for (const row of place.querySelectorAll("[data-rate]")) {
    const rate = curve[row.dataset.rate];
    if (!rate) continue;
    const [low, high, middle] = [rate.low[at], rate.high[at], rate.value[at]];
    row.querySelector("[data-value]").textContent = percent(middle);
    row.querySelector("[data-interval]").textContent = `${percent(low)} – ${percent(high)}`;
    row.querySelector("[data-counted]").textContent = "";
    const span = row.querySelector(".span");
    const axis = row.querySelector(".axis");
    const [start, end] = [Number(axis.getAttribute("x1")), Number(axis.getAttribute("x2"))];
    const x = (share) => start + (end - start) * share;
    span.setAttribute("x", x(low));
    span.setAttribute("width", Math.max(x(high) - x(low), 1.5));
    const dot = row.querySelector(".dot");
    if (dot && middle !== null) dot.setAttribute("cx", x(middle));
  }
  place.querySelector("[data-threshold]").textContent = score(value);
  const line = place.querySelector("[data-line]");
  if (line) {
    const x = Number(line.dataset.left) + Number(line.dataset.step) * value;
    line.setAttribute("x1", x);
    line.setAttribute("x2", x);
  }
  const [alarms, misses] = ["false_alarm_rate", "miss_rate"].map((name) => curve[name].value[at]);
  place.querySelector("[data-says]").textContent =
    `At ${score(value)}: ${percent(alarms)} false alarms, ${percent(misses)} misses.`;
}

/** What the slider was moved to while the curve was on its way is shown when it comes. */
function begin() {
  let curve;
  let waiting = 0;
  const moved = () => {
    const value = Number(slider.value);
    if (curve) show(curve, value);
    clearTimeout(waiting);
    waiting = setTimeout(() => {
      const groups = document.querySelector("#groups");
      const address = `${place.dataset.groups}&threshold=${encodeURIComponent(value)}`;
      if (groups) htmx.ajax("GET", address, { target: "#groups", swap: "outerHTML" });
    }, 400);
  };
  const start = slider.value;
  slider.addEventListener("input", moved);
  place.querySelector("[data-own]")?.addEventListener("click", (event) => {
    if (event.target.dataset.own === "") return;
    slider.value = event.target.dataset.own;
    moved();
  });
  return fetch(place.dataset.curve).then(async (answer) => {
    if (!answer.ok) throw new Error(`the curve: ${answer.status}`);
    curve = await answer.json();
    if (slider.value !== start) show(curve, Number(slider.value));
  });
}

if (slider) begin().catch(() => tell("the figures could not be read", true));
