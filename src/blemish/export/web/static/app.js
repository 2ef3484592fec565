// The page: what a person gives, and what is shown of the answer. The work is done in worker.js.

import { Area } from "./area.js";
import { Camera } from "./camera.js";
import { drawHeatmap, drawOutlines, drawPicture, drawUncounted, drawUnseen } from "./draw.js";
import { findRegions } from "./regions.js";
import { Scorer } from "./scorer.js";
import { nearest, pValue, thresholdFor, verdict } from "./verdict.js";

const AUTOMATIC = "automatic";
const WORDS = { 0: ["Good", "good"], 1: ["Defective", "bad"], null: ["No verdict", ""] };
const NEAREST_OF_MANY = "category told by the picture's features";
const COMMON = "category not known: judged by the common threshold of all categories";
const CUT = "of another shape than the input: its borders are cut off, not looked at";
const UNTOLD = "no background could be told from the part as on the training pictures: looked at "
  + "whole";
const place = (id) => document.getElementById(id);

const scorer = new Scorer();
let detector = null;
let area = null;
let shown = null; // { name, found } of the picture that is seen
let camera = null;
let queue = Promise.resolve(); // of files: one call after the other

// ---- starting

async function start() {
  place("unstarted").remove();
  document.querySelector("main").hidden = false;
  try {
    const opened = await scorer.open((done, total) => {
      const megabytes = (bytes) => (bytes / 1e6).toFixed(0);
      const whole = total >= done ? ` of ${megabytes(total)}` : "";
      say(`Loading the detector: ${megabytes(done)}${whole} MB`);
    });
    detector = opened.detector;
    const runs = detector.preprocessing.area?.runs;
    area = runs ? new Area(runs) : null;
    describe(opened);
    listen();
    say("Ready.");
    document.body.dataset.state = "ready";
  } catch (error) {
    complain(`The detector cannot be loaded: ${error.message}`);
    say("");
    document.body.dataset.state = "broken";
  }
}

function describe({ threads, isFaithful }) {
  document.title = detector.title;
  place("title").textContent = detector.title;
  place("about").textContent = detector.about;
  place("imprint").textContent = `${detector.imprint} Runs on ${threads} thread${
    threads === 1 ? "; python serve.py lets it use more" : "s"}.`;
  if (!isFaithful) {
    complain("This browser changes pictures before a page may read them (protection against "
      + "fingerprinting). Scores are not to be trusted here: use another browser, or allow it "
      + "for this page.");
  }
  const categories = detector.categories.map((name) => [name, name]);
  const first = detector.tells_categories ? [AUTOMATIC, "told by the picture"]
    : ["", "not known"];
  fill("category", [first, ...categories]);
  for (const id of ["category", "category-label"]) place(id).hidden = !categories.length;
  const [low, high] = detector.map_scale;
  [place("low").textContent, place("high").textContent] = [digits(low, 3), digits(high, 3)];
  const ramp = Float32Array.from({ length: 256 }, (_, at) => low + ((high - low) * at) / 255);
  drawHeatmap(place("bar"), { height: 1, width: 256, values: ramp }, [low, high], detector.colours);
  fill("rate", detector.rates.map(({ name }, at) => [at, name]));
  place("rate").value = detector.rates.findIndex(({ is_stored: isStored }) => isStored);
}

function fill(id, options) {
  place(id).replaceChildren(...options.map(([value, words]) => new Option(words, value)));
}

function listen() {
  place("files").addEventListener("change", ({ target }) => {
    scoreFiles([...target.files]);
    target.value = "";
  });
  document.addEventListener("dragover", (event) => {
    event.preventDefault();
    document.body.classList.add("dropping");
  });
  document.addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) document.body.classList.remove("dropping");
  });
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    document.body.classList.remove("dropping");
    scoreFiles([...event.dataTransfer.files]);
  });
  document.addEventListener("paste", (event) => scoreFiles([...event.clipboardData.files]));
  for (const id of ["category", "rate"]) place(id).addEventListener("change", show);
  place("opacity").addEventListener("input", setOpacity);
  place("outlined").addEventListener("change", setOpacity);
  camera = new Camera(place("video"), place("camera"), place("cameras"), { scoreFrame, complain });
  setOpacity();
}

// ---- scoring

function scoreFiles(files) {
  if (!files.length) return;
  queue = queue.then(() => scoreEach(files));
}

async function scoreEach(files) {
  camera.stop();
  complain("");
  document.body.dataset.state = "busy";
  for (const [at, file] of files.entries()) {
    const count = files.length > 1 ? ` (${at + 1} of ${files.length})` : "";
    say(`Scoring ${file.name}${count} …`);
    await score(file);
  }
  say("");
  document.body.dataset.state = "ready";
}

async function score(file) {
  try {
    replace(file.name, await scorer.score(file));
    const label = show();
    list(file, digits(shown.found.score), WORDS[label][0]);
  } catch (error) {
    replace("", null);
    place("result").hidden = true;
    list(file, "", `not scored: ${error.message}`);
    complain(`${file.name}: ${error.message}`);
  }
}

/** What is shown from now on; pictures are large, so the one before is let go at once. */
function replace(name, found) {
  shown?.found.picture.close();
  shown = found && { name, found };
}

async function scoreFrame(bitmap) {
  try {
    replace("camera", await scorer.score(bitmap));
    show();
    say("");
  } catch (error) {
    camera.stop();
    complain(`The camera's picture could not be scored: ${error.message}`);
  }
}

// ---- showing

/** Shows the picture again by what is chosen; gives its verdict. */
function show() {
  if (!shown) return null;
  const { name, found } = shown;
  const [category, notes] = categoryOf(found);
  const chosen = detector.rates[place("rate").value];
  const threshold = thresholdFor(chosen, category);
  const label = verdict(found.score, threshold);
  const regions = regionsOf(found, chosen, category);
  place("result").hidden = false;
  place("caption").textContent = `${name}, ${found.width} × ${found.height} pixels`;
  [place("verdict").textContent, place("verdict").className] = WORDS[label];
  place("score").textContent = digits(found.score);
  place("threshold").textContent = threshold?.value == null ? "none" : digits(threshold.value);
  place("guarantee").textContent = threshold ? threshold.guarantee || threshold.reason
    : "The detector has no threshold: nothing was held out to set one by.";
  const rarity = pValue(found.score, detector, chosen, category);
  place("rarity").hidden = rarity === null;
  if (rarity !== null) place("p-value").textContent = percent(rarity);
  place("regions").textContent = regions ? regions.length : "no threshold for them";
  place("seconds").textContent = `${found.seconds.toFixed(2)} s`;
  tell(found, notes);
  draw(found, regions ?? []);
  Object.assign(shown, { label, regions });
  return label;
}

function categoryOf({ features }) {
  const chosen = place("category").value;
  if (!detector.categories.length) return ["", []];
  if (chosen === AUTOMATIC) {
    const told = nearest(features, detector.category_features);
    return [told, [`${NEAREST_OF_MANY}: ${told}`]];
  }
  return [chosen, chosen ? [] : [COMMON]];
}

function regionsOf(found, { regions }, category) {
  const threshold = regions && thresholdFor(regions, category);
  if (threshold?.value == null) return null;
  const [background, smallest] = [detector.map_scale[0], detector.smallest_region];
  const places = found.counted;
  return findRegions(found.map, threshold.value, found, { background, smallest, area, places });
}

function draw(found, regions) {
  drawPicture(place("picture"), found.picture);
  drawHeatmap(place("heatmap"), found.map, detector.map_scale, detector.colours);
  const unseen = found.counted ? "" : String([found.height, found.width, found.shown]);
  if (!unseen) drawUncounted(place("unseen"), found.map, found.counted);
  else if (place("unseen").dataset.drawn !== unseen) drawUnseen(place("unseen"), area, found);
  place("unseen").dataset.drawn = unseen;
  place("unseen").hidden = !area && !found.isCut && !found.counted;
  drawOutlines(place("outlines"), regions, found.box, found, place("picture"));
}

function tell(found, more) {
  const notes = [...found.notes, ...more];
  if (found.votes !== null) notes.push(`called a defect at ${percent(found.votes)} of the sizes`);
  if (found.isCut) notes.push(CUT);
  if (found.isUntold) notes.push(UNTOLD);
  if (found.counted) notes.push("grey: background of the part, not looked at");
  else if (area) notes.push("grey: outside the area, not looked at");
  if (found.box) notes.push("dashed: the part that was looked at again");
  place("notes").replaceChildren(...notes.map((words) => {
    const item = document.createElement("li");
    item.textContent = words;
    return item;
  }));
}

function list(file, ...words) {
  const row = document.createElement("tr");
  const button = document.createElement("button");
  button.textContent = file.name;
  button.addEventListener("click", () => scoreFiles([file]));
  for (const content of [button, ...words]) row.insertCell().append(content);
  place("list").hidden = false;
  place("list").tBodies[0].prepend(row);
}

function setOpacity() {
  place("heatmap").style.opacity = place("opacity").value / 100;
  place("outlines").hidden = !place("outlined").checked;
}

const percent = (share) => `${Number((100 * share).toPrecision(2))} %`;
const digits = (value, count = 5) => Number(value.toPrecision(count)).toString();

function say(words) {
  place("status").textContent = words;
}

function complain(words) {
  place("error").textContent = words;
  place("error").hidden = !words;
}

/** What is shown, for whoever automates the page. */
window.blemish = { get shown() { return shown; }, get detector() { return detector; } };

start();
