// The worker as functions that give promises.

export class Scorer {
  #worker = new Worker(new URL("./worker.js", import.meta.url), { type: "module" });
  #waiting = new Map();
  #next = 0;
  #progress = () => {};

  constructor() {
    this.#worker.onmessage = ({ data }) => this.#heard(data);
    this.#worker.onerror = (event) => {
      event.preventDefault?.();
      const said = event.message ? ` (${event.message})` : "";
      const error = new Error(`a file of the page is missing or damaged${said}`);
      for (const { reject } of this.#waiting.values()) reject(error);
      this.#waiting.clear();
    };
  }

  /** Fetches the detector: { detector, threads, isFaithful }. `progress`: bytes so far, of all. */
  open(progress) {
    this.#progress = progress;
    return this.#asked({ kind: "open" });
  }

  /** What is found of a file, or of an ImageBitmap, which is handed over; see worker.js. */
  score(source) {
    return this.#asked({ kind: "score", source }, source instanceof ImageBitmap ? [source] : []);
  }

  #asked(question, handed = []) {
    const id = this.#next;
    this.#next += 1;
    return new Promise((resolve, reject) => {
      this.#waiting.set(id, { resolve, reject });
      this.#worker.postMessage({ ...question, id }, handed);
    });
  }

  #heard({ kind, id, result, error, done, total }) {
    if (kind === "progress") {
      this.#progress(done, total);
      return;
    }
    const { resolve, reject } = this.#waiting.get(id);
    this.#waiting.delete(id);
    if (error === undefined) resolve(result);
    else reject(new Error(error));
  }
}
