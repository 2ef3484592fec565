// A picture that is zoomed and moved, with its heatmap and regions.

import { remembered } from "./main.js";

const MOST = 64;

/** Everything of one stage. Coordinates of the picture are in its pixels, from its upper left. */
export class Stage {
  constructor(place) {
    this.place = place;
    this.view = place.querySelector("[data-view]");
    this.layers = place.querySelector("[data-layers]");
    this.width = Number(place.dataset.width);
    this.height = Number(place.dataset.height);
    this.scale = 1;
    this.x = 0;
    this.y = 0;
    this.pointers = new Map();
    this.tool = null; // takes pointers in place of moving: {begin, move, end, cancel}
    this.ended = new AbortController();
    const on = (target, kind, work, more = {}) =>
      target.addEventListener(kind, work, { signal: this.ended.signal, ...more });
    on(this.view, "wheel", (event) => this.wheel(event), { passive: false });
    for (const kind of ["pointerdown", "pointermove", "pointerup", "pointercancel"]) {
      on(this.view, kind, (event) => this[kind](event));
    }
    on(this.view, "dblclick", () => this.tool || this.zoomTo(this.scale > 1.01 ? 1 : this.own, null));
    on(window, "resize", () => this.apply());
    for (const button of place.querySelectorAll("[data-zoom]")) {
      on(button, "click", () => this.zoom(button.dataset.zoom));
    }
    this.hints();
    this.apply();
  }

  close() {
    this.ended.abort();
  }

  /** What the detector says: there from the beginning, or shown when somebody asks for it. */
  hints() {
    const { place } = this;
    const [opacity, heat] = [place.querySelector("[data-opacity]"), place.querySelector("[data-heat]")];
    if (opacity && heat && this.opacity !== opacity) {
      this.opacity = opacity;
      this.before = remembered.get("opacity") ?? opacity.value;
      opacity.value = remembered.get("heat") === "off" ? 0 : this.before;
      const fade = () => {
        heat.style.opacity = String(opacity.value / 100);
      };
      opacity.addEventListener("input", () => {
        fade();
        remembered.set("heat", opacity.value > 0 ? "on" : "off");
        if (opacity.value > 0) remembered.set("opacity", opacity.value);
      });
      heat.addEventListener("error", () => heat.remove());
      fade();
    }
    const regions = place.querySelector("[data-show-regions]");
    const drawn = place.querySelector("[data-regions]");
    if (regions && drawn && this.regions !== regions) {
      this.regions = regions;
      regions.checked = remembered.get("regions") !== "off";
      const show = () => drawn.toggleAttribute("hidden", !regions.checked);
      regions.addEventListener("change", () => {
        show();
        remembered.set("regions", regions.checked ? "on" : "off");
      });
      show();
    }
  }

  /** Pixels of the screen to one of the picture, where the whole is seen. */
  get fitted() {
    const { clientWidth, clientHeight } = this.layers;
    return Math.min(clientWidth / this.width, clientHeight / this.height) || 1;
  }

  /** The scale at which a pixel of the picture is one of the screen. */
  get own() {
    return 1 / (this.fitted * devicePixelRatio);
  }

  /** Where on the picture a pointer is. */
  at(event) {
    const box = this.view.getBoundingClientRect();
    const { offsetLeft, offsetTop, clientWidth, clientHeight } = this.layers;
    const fitted = this.fitted;
    const x = (event.clientX - box.left - offsetLeft - this.x) / this.scale;
    const y = (event.clientY - box.top - offsetTop - this.y) / this.scale;
    return [
      (x - (clientWidth - this.width * fitted) / 2) / fitted,
      (y - (clientHeight - this.height * fitted) / 2) / fitted,
    ];
  }

  apply() {
    const { clientWidth, clientHeight } = this.layers;
    const spare = (length) => (length * (this.scale - 1)) / 2 + length / 3;
    const middle = (length, at) => at + (length * (this.scale - 1)) / 2;
    const bound = (at, length) => {
      const centre = Math.max(-spare(length), Math.min(spare(length), middle(length, at)));
      return centre - (length * (this.scale - 1)) / 2;
    };
    if (this.scale === 1) [this.x, this.y] = [0, 0];
    this.x = bound(this.x, clientWidth);
    this.y = bound(this.y, clientHeight);
    this.layers.style.transform = `translate(${this.x}px, ${this.y}px) scale(${this.scale})`;
    this.layers.classList.toggle("close", this.scale * this.fitted * devicePixelRatio > 2.5);
    const shown = this.place.querySelector("[data-zoomed]");
    if (shown) shown.textContent = `${Math.round(this.scale * this.fitted * devicePixelRatio * 100)} %`;
    this.place.dispatchEvent(new CustomEvent("stage:moved"));
  }

  /** Zoom with a point of the view held; null = its middle. */
  zoomTo(scale, point) {
    const { offsetLeft, offsetTop, clientWidth, clientHeight } = this.layers;
    const [px, py] = point ?? [offsetLeft + clientWidth / 2, offsetTop + clientHeight / 2];
    const to = Math.max(Math.min(1, this.own), Math.min(MOST, scale));
    const by = to / this.scale;
    this.x = px - offsetLeft - (px - offsetLeft - this.x) * by;
    this.y = py - offsetTop - (py - offsetTop - this.y) * by;
    this.scale = to;
    this.apply();
  }

  zoom(how) {
    if (how === "fit") this.zoomTo(1, null);
    else if (how === "own") this.zoomTo(this.own, null);
    else this.zoomTo(this.scale * (how === "in" ? 1.4 : 1 / 1.4), null);
  }

  /** Show a box of the picture large. */
  show(x, y, width, height) {
    const fitted = this.fitted;
    const { clientWidth, clientHeight } = this.layers;
    const scale = Math.min(clientWidth / (width * 3), clientHeight / (height * 3)) / fitted;
    this.scale = Math.max(1, Math.min(MOST, scale));
    const left = (clientWidth - this.width * fitted) / 2 + (x + width / 2) * fitted;
    const top = (clientHeight - this.height * fitted) / 2 + (y + height / 2) * fitted;
    this.x = clientWidth / 2 - left * this.scale;
    this.y = clientHeight / 2 - top * this.scale;
    this.apply();
  }

  move(x, y) {
    this.x += x;
    this.y += y;
    this.apply();
  }

  place_of(event) {
    const box = this.view.getBoundingClientRect();
    return [event.clientX - box.left, event.clientY - box.top];
  }

  wheel(event) {
    event.preventDefault();
    const step = event.deltaMode === 1 ? event.deltaY * 30 : event.deltaY;
    this.zoomTo(this.scale * Math.exp(-step / 400), this.place_of(event));
  }

  pointerdown(event) {
    if (event.button > 1) return;
    this.view.setPointerCapture(event.pointerId);
    this.pointers.set(event.pointerId, this.place_of(event));
    this.drawing = this.tool && this.pointers.size === 1 && event.button === 0 && !this.held;
    if (this.drawing) this.tool.begin(this.at(event), event);
    else if (this.tool && this.pointers.size === 2) this.tool.cancel(); // two fingers move
    if (!this.drawing) this.view.classList.add("dragging");
  }

  pointermove(event) {
    const before = this.pointers.get(event.pointerId);
    if (!before) {
      this.tool?.hover?.(this.at(event));
      return;
    }
    const now = this.place_of(event);
    if (this.pointers.size === 2) this.pinch(event.pointerId, now);
    else if (this.drawing) {
      const all = event.getCoalescedEvents?.() ?? [];
      for (const one of all.length ? all : [event]) this.tool.move(this.at(one), one);
    } else this.move(now[0] - before[0], now[1] - before[1]);
    this.pointers.set(event.pointerId, now);
  }

  pinch(moved, now) {
    this.drawing = false;
    const [[, still]] = [...this.pointers].filter(([id]) => id !== moved);
    const before = this.pointers.get(moved);
    const apart = ([x, y]) => Math.hypot(x - still[0], y - still[1]) || 1;
    this.move((now[0] - before[0]) / 2, (now[1] - before[1]) / 2);
    const middle = [(now[0] + still[0]) / 2, (now[1] + still[1]) / 2];
    this.zoomTo((this.scale * apart(now)) / apart(before), middle);
  }

  pointerup(event) {
    if (this.drawing && this.pointers.size === 1) this.tool?.end(this.at(event), event);
    this.pointers.delete(event.pointerId);
    this.view.classList.remove("dragging");
    this.drawing = false;
  }

  pointercancel(event) {
    if (this.drawing) this.tool?.cancel();
    this.pointers.delete(event.pointerId);
    this.view.classList.remove("dragging");
    this.drawing = false;
  }

  /** What a key does here; whether it did something. */
  key(event) {
    const arrows = { ArrowLeft: [80, 0], ArrowRight: [-80, 0], ArrowUp: [0, 80], ArrowDown: [0, -80] };
    if (event.shiftKey && arrows[event.key]) this.move(...arrows[event.key]);
    else if (event.key === "+" || event.key === "=") this.zoom("in");
    else if (event.key === "-") this.zoom("out");
    else if (event.key === "0") this.zoom("fit");
    else if (event.key === "1") this.zoom("own");
    else if ("hr".includes(event.key) && this.place.querySelector("[data-reveal]")) {
      this.place.querySelector("[data-reveal]").click();
    } else if (event.key === "h") this.toggleHeat();
    else if (event.key === "r") this.place.querySelector("[data-show-regions]")?.click();
    else return false;
    return true;
  }

  toggleHeat() {
    const opacity = this.place.querySelector("[data-opacity]");
    if (!opacity) return;
    if (Number(opacity.value) > 0) {
      this.before = opacity.value;
      opacity.value = 0;
    } else {
      opacity.value = this.before ?? 50;
    }
    opacity.dispatchEvent(new Event("input"));
  }
}
