// A mask drawn on a picture: brush, eraser, polygon, undo.

const SIDE = 2048; // the longest side that is drawn in; larger pictures get their mask enlarged
const COLOUR = "#36e0d0";
const THINNEST = 0.85; // pixels: less may touch none of them by half

export class Mask {
  constructor(stage) {
    this.stage = stage;
    this.canvas = stage.place.querySelector("[data-canvas]");
    this.sketch = stage.place.querySelector("[data-sketch]");
    this.factor = Math.min(1, SIDE / Math.max(stage.width, stage.height));
    this.canvas.width = Math.max(1, Math.round(stage.width * this.factor));
    this.canvas.height = Math.max(1, Math.round(stage.height * this.factor));
    this.context = this.canvas.getContext("2d", { willReadFrequently: true });
    this.steps = []; // what is drawn, in order: {kind, radius, points} or {kind: "clear"}
    this.corners = [];
    this.kind = "move";
    this.base = null; // a mask that was there before
    const { place, ended } = stage;
    const on = (target, kind, work) => target?.addEventListener(kind, work, { signal: ended.signal });
    for (const button of place.querySelectorAll("[data-tool]")) {
      on(button, "click", () => this.choose(button.dataset.tool));
    }
    this.undoing = place.querySelector("[data-mask-undo]");
    this.clearing = place.querySelector("[data-mask-clear]");
    this.width = place.querySelector("[data-brush]");
    on(this.undoing, "click", () => this.undo());
    on(this.clearing, "click", () => this.clear());
    if (place.dataset.mask) this.load(place.dataset.mask);
  }

  get isEmpty() {
    return !this.base && !this.steps.length;
  }

  /** The radius of the brush in pixels of the picture: it looks the same at every zoom. */
  get radius() {
    return Number(this.width.value) / 2 / (this.stage.fitted * this.stage.scale);
  }

  load(address) {
    const image = new Image();
    image.onload = () => {
      const { width, height } = this.canvas;
      const drawn = new OffscreenCanvas(width, height);
      const context = drawn.getContext("2d");
      context.drawImage(image, 0, 0, width, height);
      const pixels = context.getImageData(0, 0, width, height);
      const colour = [0x36, 0xe0, 0xd0];
      for (let at = 0; at < pixels.data.length; at += 4) {
        const inside = pixels.data[at] > 127;
        pixels.data.set([...colour, inside ? 255 : 0], at);
      }
      context.putImageData(pixels, 0, 0);
      this.base = drawn;
      this.redraw();
    };
    image.src = address;
  }

  choose(kind) {
    if (this.kind === "polygon" && kind !== "polygon") this.closePolygon();
    this.kind = kind;
    this.stage.tool = kind === "move" ? null : this;
    this.stage.view.classList.toggle("drawing", kind !== "move");
    for (const button of this.stage.place.querySelectorAll("[data-tool]")) {
      button.setAttribute("aria-pressed", String(button.dataset.tool === kind));
    }
  }

  begin(point) {
    if (this.kind === "polygon") {
      this.corner(point);
      return;
    }
    this.now = { kind: this.kind, radius: this.radius, points: [point] };
    this.draw(this.now);
  }

  move(point) {
    if (!this.now) return;
    this.now.points.push(point);
    this.draw({ ...this.now, points: this.now.points.slice(-2) });
  }

  end() {
    if (!this.now) return;
    this.add(this.now);
    this.now = null;
  }

  cancel() {
    this.now = null;
    this.redraw();
  }

  hover(point) {
    if (this.kind === "polygon" && this.corners.length) this.outline(point);
  }

  corner(point) {
    const first = this.corners[0];
    const near = 12 / (this.stage.fitted * this.stage.scale);
    if (first && this.corners.length > 2 && Math.hypot(point[0] - first[0], point[1] - first[1]) < near) {
      this.closePolygon();
      return;
    }
    this.corners.push(point);
    this.outline();
    this.changed();
  }

  /** Fill the polygon. */
  closePolygon() {
    const { corners } = this;
    this.corners = [];
    this.sketch.replaceChildren();
    if (corners.length > 2) {
      this.add({ kind: "polygon", points: corners });
      this.redraw();
    }
  }

  outline(hovered) {
    const made = (name, attributes) => {
      const one = document.createElementNS("http://www.w3.org/2000/svg", name);
      for (const [key, value] of Object.entries(attributes)) one.setAttribute(key, value);
      return one;
    };
    const points = hovered ? [...this.corners, hovered] : this.corners;
    const r = 5 / (this.stage.fitted * this.stage.scale);
    this.sketch.replaceChildren(
      made("polyline", { points: points.map((point) => point.join(",")).join(" ") }),
      ...this.corners.map(([cx, cy]) => made("circle", { cx, cy, r })),
    );
    this.enable();
  }

  add(step) {
    this.steps.push(step);
    this.changed();
  }

  changed() {
    this.enable();
    this.stage.place.dispatchEvent(new CustomEvent("mask:changed", { bubbles: true }));
  }

  /** What was drawn, as JSON takes it; null where nothing was. */
  get draft() {
    if (!this.steps.length && !this.corners.length) return null;
    const short = (points) => points.map((point) => point.map((value) => Math.round(value * 10) / 10));
    const steps = this.steps.map((step) => (step.points ? { ...step, points: short(step.points) } : step));
    return { steps, corners: short(this.corners) };
  }

  set draft({ steps, corners }) {
    [this.steps, this.corners] = [steps, corners];
    this.redraw();
    if (corners.length) {
      this.choose("polygon");
      this.outline();
    }
  }

  undo() {
    if (this.corners.length) {
      this.corners.pop();
      this.outline();
    } else {
      this.steps.pop();
      this.redraw();
    }
    this.changed();
  }

  clear() {
    this.corners = [];
    this.sketch.replaceChildren();
    if (!this.isEmpty) this.add({ kind: "clear" });
    this.redraw();
  }

  enable() {
    this.undoing.disabled = !this.steps.length && !this.corners.length;
    this.clearing.disabled = this.isEmpty;
  }

  redraw() {
    this.context.clearRect(0, 0, this.canvas.width, this.canvas.height);
    if (this.base) this.context.drawImage(this.base, 0, 0);
    for (const step of this.steps) this.draw(step);
    this.enable();
  }

  draw(step) {
    const { context, factor } = this;
    if (step.kind === "clear") {
      context.clearRect(0, 0, this.canvas.width, this.canvas.height);
      return;
    }
    const points = step.points.map(([x, y]) => [x * factor, y * factor]);
    context.globalCompositeOperation = step.kind === "eraser" ? "destination-out" : "source-over";
    context.fillStyle = context.strokeStyle = COLOUR;
    context.lineCap = context.lineJoin = "round";
    context.beginPath();
    if (step.kind === "polygon") {
      for (const [x, y] of points) context.lineTo(x, y);
      context.closePath();
      context.fill();
    } else {
      const radius = Math.max(THINNEST, step.radius * factor);
      context.lineWidth = 2 * radius;
      context.moveTo(...points[0]);
      for (const [x, y] of points) context.lineTo(x, y);
      if (points.length > 1) context.stroke();
      context.beginPath(); // a line of no length is not drawn
      context.arc(...points[0], radius, 0, 2 * Math.PI);
      context.fill();
    }
    context.globalCompositeOperation = "source-over";
  }

  /** The mask as a PNG of 0 and 255; null without one. */
  async png() {
    this.closePolygon();
    if (this.isEmpty) return null;
    const { width, height } = this.canvas;
    const pixels = this.context.getImageData(0, 0, width, height);
    let some = false;
    for (let at = 0; at < pixels.data.length; at += 4) {
      const inside = pixels.data[at + 3] > 127;
      some ||= inside;
      pixels.data.fill(inside ? 255 : 0, at, at + 3);
      pixels.data[at + 3] = 255;
    }
    if (!some) return null;
    const made = new OffscreenCanvas(width, height);
    made.getContext("2d").putImageData(pixels, 0, 0);
    return made.convertToBlob({ type: "image/png" });
  }

  /** What a key does here; whether it did something. */
  key(event) {
    const tools = { b: "brush", p: "polygon", e: "eraser", v: "move" };
    if ((event.ctrlKey || event.metaKey) && event.key === "z") this.undo();
    else if (event.ctrlKey || event.metaKey) return false;
    else if (tools[event.key]) this.choose(tools[event.key]);
    else if (event.key === "[" || event.key === "]") {
      this.width.value = Number(this.width.value) + (event.key === "]" ? 6 : -6);
    } else if (event.key === "Enter" && this.corners.length) this.closePolygon();
    else if (event.key === "Backspace" && this.corners.length) this.undo();
    else if (event.key === "Escape" && this.corners.length) {
      this.corners = [];
      this.sketch.replaceChildren();
    } else if (event.key === "Escape" && this.kind !== "move") this.choose("move");
    else return false;
    return true;
  }
}
