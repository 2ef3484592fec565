// The page of a picture and the review: stage, mask, and labels by keys.

import { isTyping } from "./main.js";
import { Mask } from "./mask.js";
import { Stage } from "./stage.js";

let stage = null;
let mask = null;
let png = null; // of the mask, made before its form is sent

function open() {
  const place = document.querySelector("[data-stage]");
  if (stage?.place === place) return;
  stage?.close();
  [stage, mask] = [place && new Stage(place), null];
  if (place?.hasAttribute("data-draws")) mask = new Mask(stage);
  for (const heat of document.querySelectorAll("img.heat")) heat.onerror = () => heat.remove();
}

const form = () => document.querySelector("#label");
const type = () => form()?.elements.defect;

async function press(verdict) {
  const button = form()?.querySelector(`[data-verdict="${verdict}"]`);
  if (!button || button.disabled) return;
  button.click();
}

// A canvas becomes a file only after a while, so the form waits for it.
document.addEventListener("htmx:confirm", (event) => {
  if (event.target.id !== "label") return;
  event.preventDefault();
  const { submitter } = event.detail.triggeringEvent ?? {};
  const making = submitter?.value === "defect" && mask ? mask.png() : Promise.resolve(null);
  making.then((made) => {
    png = made;
    event.detail.issueRequest(true);
  });
});
document.addEventListener("htmx:configRequest", (event) => {
  if (event.target.id === "label" && png) event.detail.formData.append("mask", png, "mask.png");
  png = null;
});
document.addEventListener("htmx:afterSwap", open);

document.addEventListener("click", (event) => {
  const chip = event.target.closest?.("[data-type]");
  if (chip) type().value = chip.dataset.type;
  const row = event.target.closest?.("[data-region]");
  if (row) stage?.show(...row.dataset.region.split(" ").map(Number));
});

document.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && event.target === type()) {
    event.preventDefault(); // the type alone decides nothing: d does
    event.target.blur();
    return;
  }
  if (event.key === "Escape" && event.target === type()) event.target.blur();
  if (isTyping(event)) return;
  if (event.key === "Enter" && event.target.matches?.("[data-region]")) event.target.click();
  if (event.key === " " && stage && !event.target.matches("button, a, summary")) {
    stage.held = true;
    event.preventDefault();
    return;
  }
  if (mask?.key(event)) {
    event.preventDefault();
    return;
  }
  if (event.ctrlKey || event.metaKey) return;
  if (stage?.key(event)) {
    event.preventDefault();
    return;
  }
  if (event.shiftKey || event.repeat) return;
  if ("gdus".includes(event.key)) press(event.key);
  else if (event.key === "z") document.querySelector("[data-undo]")?.click();
  else if (event.key === "y") {
    event.preventDefault();
    type()?.focus();
  } else if (!event.target.matches?.('input[type="range"]')) {
    document.querySelector(`[data-arrow="${CSS.escape(event.key)}"]`)?.click();
  }
});
document.addEventListener("keyup", (event) => {
  if (event.key === " " && stage) stage.held = false;
});

open();
