// Scores pictures beside the page, which so stays alive. Everything it needs lies in its folder.

import { Area } from "./area.js";
import { decode, readsFaithfully } from "./decode.js";
import { masked } from "./foreground.js";
import * as ort from "./onnxruntime/ort.js";
import { prepare } from "./prepare.js";

const MOST_THREADS = 4;
let detector = null;
let session = null;
let area = null;

/** Fetches the detector and its model, and makes them ready. */
async function open() {
  detector = await (await fetched("detector.json")).json();
  const runs = detector.preprocessing.area?.runs;
  area = runs ? new Area(runs) : null;
  const model = await downloaded(await fetched("model.onnx"));
  await check(model);
  ort.env.wasm.wasmPaths = { wasm: new URL("./onnxruntime/ort.wasm", import.meta.url).href };
  ort.env.wasm.numThreads = crossOriginIsolated
    ? Math.min(navigator.hardwareConcurrency, MOST_THREADS) : 1;
  session = await ort.InferenceSession.create(model, { executionProviders: ["wasm"] });
  return { detector, threads: ort.env.wasm.numThreads, isFaithful: await readsFaithfully() };
}

async function fetched(name) {
  const answer = await fetch(new URL(name, import.meta.url), { cache: "no-cache" });
  if (!answer.ok) throw new Error(`${name}: the server answers ${answer.status}`);
  return answer;
}

async function downloaded(answer) {
  const total = Number(answer.headers.get("Content-Length"));
  const parts = [];
  let done = 0;
  const reader = answer.body.getReader();
  for (let { value } = await reader.read(); value; { value } = await reader.read()) {
    parts.push(value);
    done += value.length;
    postMessage({ kind: "progress", done, total });
  }
  return new Uint8Array(await new Blob(parts).arrayBuffer());
}

/** The model is the one that detector.json speaks of: thresholds of another would say nothing. */
async function check(model) {
  if (!globalThis.crypto.subtle) return; // not over plain http from another computer
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", model));
  const found = Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("");
  if (found !== detector.model_sha256) {
    throw new Error("model.onnx is not the one that detector.json belongs to, or is damaged; "
      + "write the page again with blemish export --web");
  }
}

async function score(source) {
  const picture = await decode(source);
  const started = performance.now();
  const isPixels = detector.export.input === "pixels";
  const { values, shape, placement } = prepare(picture, detector.preprocessing, area, isPixels);
  const name = isPixels ? "pixels" : "images";
  const input = new ort.Tensor(isPixels ? "uint8" : "float32", values, shape);
  const found = await session.run({ [name]: input }, detector.outputs);
  const { score: raised, map, counted } = judged(found);
  const result = {
    score: raised,
    map: placement.toPicture(map),
    counted,
    isUntold: Boolean(detector.foreground) && !counted,
    box: found.box ? placement.boxToPicture(found.box.data) : null,
    features: found.category ? found.category.data : null,
    votes: found.votes ? found.votes.data[0] : null,
    isCut: placement.isCut,
    shown: [placement.down, placement.across].map((one) => [one.start, one.length]),
    seconds: (performance.now() - started) / 1000,
    height: picture.height, width: picture.width, notes: picture.notes, picture: picture.bitmap,
  };
  if (!Number.isFinite(result.score) || !map.values.every(Number.isFinite)) {
    throw new Error("the score is not finite; the detector or the picture is damaged");
  }
  return result;
}

/** The score and the map where the part alone counts, if it is told from its background. */
function judged(found) {
  const [map, part] = [found.map, found.part].map((one) => one && {
    height: one.dims[1], width: one.dims[2], values: one.data,
  });
  const whole = { score: found.score.data[0], map, counted: null };
  return detector.foreground ? masked(whole.score, map, part, detector, area) : whole;
}

async function answer({ data: { kind, id, source } }) {
  try {
    const result = kind === "open" ? await open() : await score(source);
    postMessage({ kind: "answer", id, result }, result.picture ? [result.picture] : []);
  } catch (error) {
    postMessage({ kind: "answer", id, error: error.message ?? String(error) });
  }
}

// One after the other: a session runs one picture at a time.
let last = Promise.resolve();
onmessage = (message) => {
  last = last.then(() => answer(message));
};
