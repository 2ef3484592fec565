// The page of a picture and the review: stage, mask, and labels by keys.

import { keep, kept } from "./drafts.js";
import { isTyping, tell } from "./main.js";
import { Mask } from "./mask.js";
import { Sending } from "./sending.js";
import { Stage } from "./stage.js";

const SEEN = 200; // milliseconds: a key that comes sooner was meant for the picture before

let stage = null;
let mask = null;
let png = null; // of the mask, made before its form is sent
let making = false; // a mask is on its way into a file

const form = () => document.querySelector("#label");
const type = () => form()?.elements.defect;
const picture = () => form()?.elements.picture.value;
let sent = null; // the picture whose label is on its way
const sending = new Sending(form, (verdict) => {
  if (verdict !== "skip") keep(sent, null); // what was skipped comes again, with what was drawn
});

function open() {
  const place = document.querySelector("[data-stage]");
  if (place && stage?.place === place) {
    stage.hints();
    return;
  }
  const patience = stage ? SEEN : 0;
  stage?.close();
  [stage, mask] = [place && new Stage(place), null];
  if (place?.hasAttribute("data-draws")) mask = new Mask(stage);
  const image = place?.querySelector("[data-picture]");
  const here = () => setTimeout(() => place.toggleAttribute("data-ready", true), patience);
  if (image?.complete) here();
  else for (const kind of ["load", "error"]) image?.addEventListener(kind, here);
  again();
}

/** What was drawn before the page was loaded anew. */
function again() {
  const found = form() && kept(picture());
  if (!found) return;
  if (found.mask && mask) mask.draft = found.mask;
  if (found.defect) type().value = found.defect;
  tell("What you drew here before is back; it is not sent yet.");
}

function remember() {
  if (!form()) return;
  const draft = { mask: mask?.draft ?? null, defect: type().value };
  keep(picture(), draft.mask || draft.defect ? draft : null);
}
document.addEventListener("mask:changed", remember);
document.addEventListener("input", (event) => {
  if (event.target === type()) remember();
});

function press(verdict) {
  const button = form()?.querySelector(`[data-verdict="${verdict}"]`);
  if (button && !button.disabled) button.click();
}

/** Whether the picture was there long enough to be judged. */
function isSeen() {
  if (stage.place.hasAttribute("data-ready")) return true;
  if (!stage.place.querySelector("[data-picture]").complete) tell("The picture is still on its way.");
  return false;
}

// A canvas becomes a file only after a while, so the form waits for it.
document.addEventListener("htmx:confirm", (event) => {
  if (event.target.id !== "label") return;
  event.preventDefault();
  const { submitter } = event.detail.triggeringEvent ?? {};
  if (making || !isSeen()) return;
  making = true;
  sent = picture();
  sending.begin(submitter?.value);
  const drawn = submitter?.value === "defect" && mask ? mask.png() : Promise.resolve(null);
  drawn
    .then((made) => {
      png = made;
      event.detail.issueRequest(true);
    })
    .catch(() => tell("the mask could not be made; it is still here", true))
    .finally(() => {
      making = false;
    });
});
document.addEventListener("htmx:configRequest", (event) => {
  if (event.target.id === "label" && png) event.detail.formData.append("mask", png, "mask.png");
  if (event.target.id === "label") png = null;
});
document.addEventListener("htmx:afterSwap", open);
document.addEventListener("htmx:oobAfterSwap", open);

document.addEventListener("click", (event) => {
  const chip = event.target.closest?.("[data-type]");
  if (chip) {
    type().value = chip.dataset.type;
    remember();
  }
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
