// The live page: asks for the newest pictures whenever the service says that there are some.

import { csrf, isTyping, problem, tell } from "./main.js";

const feed = document.querySelector("#feed");
const summary = document.querySelector("#summary");
const state = document.querySelector("#state");
const pause = document.querySelector("#pause");
const SHORTEST = 400; // milliseconds between two looks
const SLOW = 2500; // and between two looks at counts and charts
const IDLE = 30000; // and between these where nothing comes

let paused = false;
let waiting = false;
let last = 0;
let lastSummary = 0;
let stale = false; // counts and charts

function said(kind, text) {
  state.className = `state ${kind}`;
  state.textContent = text;
}

async function fetched(address, place) {
  const answer = await fetch(address, { headers: { "HX-Request": "true", Accept: "text/html" } });
  if (answer.headers.has("HX-Redirect")) location.assign(answer.headers.get("HX-Redirect"));
  if (!answer.ok) return;
  const scrolled = place.querySelector(".tiles")?.scrollLeft ?? 0;
  place.innerHTML = await answer.text();
  const tiles = place.querySelector(".tiles");
  if (tiles) tiles.scrollLeft = scrolled;
  sharpen();
}

/** The newest picture, at first small, in full resolution. */
function sharpen() {
  const small = feed.querySelector("[data-full]");
  if (!small) return;
  const full = new Image();
  full.onload = () => {
    small.src = full.src;
  };
  full.src = small.dataset.full;
  for (const one of feed.querySelectorAll("img.heat")) one.onerror = () => one.remove();
}

async function look() {
  if (waiting || paused) return;
  waiting = true;
  await new Promise((done) => setTimeout(done, Math.max(0, last + SHORTEST - performance.now())));
  last = performance.now();
  waiting = false;
  const asked = new URLSearchParams({ model: feed.dataset.model, show: feed.dataset.show });
  try {
    await fetched(`/live/feed?${asked}`, feed);
    stale = true;
  } catch {
    // the stream of events says that the service is away
  }
}

async function count() {
  lastSummary = performance.now();
  stale = false;
  await fetched(`/live/summary?${new URLSearchParams({ model: feed.dataset.model })}`, summary);
}

let events = null;

function listen() {
  if (events || document.hidden) return;
  events = new EventSource("/v1/events");
  events.addEventListener("open", () => said(paused ? "" : "on", paused ? "paused" : "live"));
  events.addEventListener("error", () => said("off", "not connected, trying again"));
  for (const kind of ["prediction", "label", "promotion"]) {
    events.addEventListener(kind, (event) => {
      if (kind === "promotion") location.reload();
      const data = JSON.parse(event.data);
      if (data.model === undefined || data.model === feed.dataset.model) look();
    });
  }
  events.addEventListener("drift", (event) => {
    const data = JSON.parse(event.data);
    if (data.model !== feed.dataset.model) return;
    tell(`${data.source || "All sources"}: ${data.change}`, true);
    count().catch(() => {});
  });
}

// Browsers open six connections to a host, over all tabs: one that nobody looks at keeps none.
document.addEventListener("visibilitychange", () => {
  if (document.hidden) {
    events?.close();
    events = null;
  } else {
    listen();
    look();
  }
});
listen();
setInterval(() => {
  const since = performance.now() - lastSummary;
  if (!paused && !document.hidden && since > (stale ? SLOW : IDLE)) count().catch(() => {});
}, 500);

function toggle() {
  paused = !paused;
  pause.setAttribute("aria-pressed", String(paused));
  said(paused ? "" : "on", paused ? "paused" : "live");
  if (!paused) look();
}
pause.addEventListener("click", toggle);
document.addEventListener("keydown", (event) => {
  if (event.key === " " && !isTyping(event) && !event.target.matches("button, a, summary")) {
    event.preventDefault();
    toggle();
  }
});

// Pictures that are dropped or chosen go to the model, a few at a time.
const upload = document.querySelector("#upload");

async function send(files) {
  const pictures = [...files];
  const asked = new URLSearchParams();
  const category = upload.elements.category?.value;
  if (category) asked.set("category", category);
  const address = `/v1/models/${encodeURIComponent(upload.dataset.model)}/predict?${asked}`;
  let done = 0;
  for (let at = 0; at < pictures.length; at += 4) {
    const body = new FormData();
    for (const one of pictures.slice(at, at + 4)) body.append("picture", one, one.name);
    const answer = await fetch(address, { method: "POST", body, headers: { "X-CSRF-Token": csrf } });
    if (!answer.ok) {
      tell(await problem(answer), true);
      continue;
    }
    for (const row of (await answer.json()).predictions) {
      if (row.error) tell(`${row.path}: ${row.error.message}`, true);
      else done += 1;
    }
  }
  if (done) tell(done === 1 ? "1 picture was scored" : `${done} pictures were scored`);
}

if (upload) {
  upload.elements.picture.addEventListener("change", (event) => {
    send(event.target.files).catch(() => tell("the pictures could not be sent", true));
    event.target.value = "";
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
    send(event.dataTransfer.files).catch(() => tell("the pictures could not be sent", true));
  });
}
sharpen();
