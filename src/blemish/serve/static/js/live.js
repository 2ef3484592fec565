// The live page: asks for the newest pictures whenever the service says that there are some.

import { csrf, hold, isTyping, problem, renew, tell } from "./main.js";

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
let sending = 0; // pictures on their way
let moved = false; // another version is live
const asked = new WeakMap(); // how often a place was asked for

function said(kind, text) {
  state.className = `state ${kind}`;
  state.textContent = text;
}

async function fetched(address, place) {
  const number = (asked.get(place) ?? 0) + 1;
  asked.set(place, number);
  const headers = { "HX-Request": "true", "HX-Current-URL": location.href, Accept: "text/html" };
  const answer = await fetch(address, { headers });
  if (answer.headers.has("HX-Redirect")) location.assign(answer.headers.get("HX-Redirect"));
  if (!answer.ok) return;
  const text = await answer.text();
  if (asked.get(place) !== number) return; // a later one knows more
  const scrolled = place.querySelector(".tiles")?.scrollLeft ?? 0;
  const focused = place.contains(document.activeElement) && document.activeElement.getAttribute("href");
  place.innerHTML = text;
  const tiles = place.querySelector(".tiles");
  if (tiles) tiles.scrollLeft = scrolled;
  if (focused) place.querySelector(`a[href="${CSS.escape(focused)}"]`)?.focus();
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
      if (kind === "promotion") {
        moved = true;
        anew();
      }
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

/** Loads the page for another version, but not while pictures are on their way. */
function anew() {
  if (moved && !sending) location.reload();
}

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

async function posted(address, pictures) {
  const body = new FormData();
  for (const one of pictures) body.append("picture", one, one.name);
  return fetch(address, { method: "POST", body, headers: { "X-CSRF-Token": csrf() } });
}

/** The answer for some pictures; with another token, or later, where that helps. */
async function answered(address, pictures) {
  for (let attempt = 1; ; attempt += 1) {
    const answer = await posted(address, pictures);
    if (answer.ok || attempt > 4) return answer;
    if (answer.status === 403 && (await renew())) continue;
    if (answer.status !== 503) return answer;
    const seconds = Math.min(Number(answer.headers.get("Retry-After")) || 1, 20);
    await new Promise((done) => setTimeout(done, 1000 * seconds));
  }
}

async function send(files) {
  const pictures = [...files];
  const asked = new URLSearchParams();
  const category = upload.elements.category?.value;
  if (category) asked.set("category", category);
  const address = `/v1/models/${encodeURIComponent(upload.dataset.model)}/predict?${asked}`;
  const left = []; // those that the service has not looked at
  let done = 0;
  let why = "";
  sending += 1;
  for (let at = 0; at < pictures.length; at += 4) {
    const some = pictures.slice(at, at + 4);
    try {
      const answer = await answered(address, some);
      if (answer.status === 422 && some.length === 1) tell(await problem(answer), true); // the picture's own
      else if (!answer.ok) throw new Error(await problem(answer));
      else {
        for (const row of (await answer.json()).predictions) {
          if (row.error) tell(`${row.path}: ${row.error.message}`, true);
          else done += 1;
        }
      }
    } catch (error) {
      why = error instanceof TypeError ? "the service cannot be reached" : error.message;
      left.push(...some);
    }
  }
  sending -= 1;
  if (done) tell(done === 1 ? "1 picture was scored" : `${done} pictures were scored`);
  if (left.length) {
    const many = left.length === 1 ? "1 picture was" : `${left.length} pictures were`;
    const notice = hold(`${many} not scored: ${why}`, true, {
      "Send again": () => {
        notice.close();
        send(left);
      },
      Close: () => notice.close(),
    });
  }
  anew();
}

if (upload) {
  upload.elements.picture.addEventListener("change", (event) => {
    send(event.target.files);
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
    send(event.dataTransfer.files);
  });
}
sharpen();
