// From the pixels of a picture to what the model takes: `blemish.data.transforms.prepare`.
// A picture is { height, width, pixels }: RGB, row by row.

import { Placement } from "./geometry.js";
import { nearestEven, resize } from "./resize.js";

const round = Math.fround;
const NOT_ZERO = 1e-6; // of a normalised pixel: 0 says that it is not looked at

/** { values, shape, placement }; `values` as the export says: float32 1 3 H W, or uint8 1 H W 3. */
export function prepare(picture, preprocessing, area, asPixels) {
  const placement = new Placement(picture.height, picture.width, preprocessing);
  const { down, across } = placement;
  const painted = paintedOutside(picture, preprocessing, area);
  const shown = cropped(painted, picture.width, down, across);
  const pixels = resize(shown, down.length, across.length, down.filled, across.filled);
  if (asPixels) {
    return { values: Uint8Array.from(pixels), shape: [1, down.input, across.input, 3], placement };
  }
  const isFramed = preprocessing.resize !== "stretch";
  const inside = isFramed && area ? placement.inside(area) : null;
  if (inside && !inside.includes(1)) {
    throw new Error("Nothing of the area that is looked at lies in the part of the picture that "
      + "the input shows.");
  }
  const values = normalised(pixels, placement, preprocessing, isFramed, inside);
  return { values, shape: [1, 3, down.input, across.input], placement };
}

/** The pixels with the mean colour outside the area; a copy, where there is an area. */
function paintedOutside({ height, width, pixels }, { mean }, area) {
  if (!area) return pixels;
  const colour = mean.map((value) => nearestEven(round(round(value) * 255)));
  const painted = pixels.slice();
  area.mask(height, width).forEach((inside, at) => {
    if (!inside) painted.set(colour, at * 3);
  });
  return painted;
}

function cropped(pixels, width, down, across) {
  if (down.length === down.picture && across.length === across.picture) return pixels;
  const made = new Uint8ClampedArray(down.length * across.length * 3);
  for (let y = 0; y < down.length; y += 1) {
    const start = ((down.start + y) * width + across.start) * 3;
    made.set(pixels.subarray(start, start + across.length * 3), y * across.length * 3);
  }
  return made;
}

/** Of each channel what each of the 256 values becomes. */
function tables({ mean, std }) {
  return mean.map((value, channel) => {
    const middle = round(round(value) * 255);
    const factor = round(1 / round(round(std[channel]) * 255));
    return Float32Array.from({ length: 256 }, (_, pixel) => round(pixel - middle) * factor);
  });
}

function normalised(pixels, { down, across }, preprocessing, isFramed, inside) {
  const size = down.input * across.input;
  const made = new Float32Array(3 * size);
  const table = tables(preprocessing);
  for (let y = 0, from = 0; y < down.filled; y += 1) {
    let into = (down.into + y) * across.input + across.into;
    for (let x = 0; x < across.filled; x += 1, from += 3, into += 1) {
      if (inside && !inside[into]) continue;
      const red = table[0][pixels[from]];
      const green = table[1][pixels[from + 1]];
      const blue = table[2][pixels[from + 2]];
      const isZero = isFramed && red === 0 && green === 0 && blue === 0;
      made[into] = isZero ? NOT_ZERO : red;
      made[into + size] = green;
      made[into + 2 * size] = blue;
    }
  }
  return made;
}
