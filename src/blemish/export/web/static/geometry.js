// Where a picture lies in the detector's input, and how maps of that input come back to the
// picture: `blemish.data.geometry`, with its names.

import { nearestEven } from "./resize.js";

const NEAR = 1 / 32;

/** Along one side: pixels [start, start + length) of the picture fill [into, into + filled) of the
 * input. */
class Span {
  constructor(picture, input, start, length, into, filled) {
    Object.assign(this, { picture, input, start, length, into, filled });
  }

  toPicture(place) {
    return this.start + ((place - this.into) * this.length) / this.filled;
  }

  toInput(place) {
    return this.into + ((place - this.start) * this.filled) / this.length;
  }

  /** Of so many places of a map over the input, the first and the end of those that show some of
   * the picture. */
  places(count) {
    const end = Math.ceil(((this.into + this.filled) * count) / this.input);
    return [Math.floor((this.into * count) / this.input), end];
  }

  /** Of each place of a map over the picture: the lower of the two places among `places` that it
   * lies between, the share of the other, and whether it was looked at. */
  read(count) {
    const [first, end] = this.places(count);
    const finest = ((count * this.filled) / this.input) * this.picture / this.length;
    const wanted = Math.min(Math.max(1, nearestEven(finest)), Math.max(count, this.picture));
    const found = { lower: [], share: [], seen: [] };
    for (let each = 0; each < wanted; each += 1) {
      const middle = ((each + 0.5) * this.picture) / wanted;
      found.seen.push(middle >= this.start && middle < this.start + this.length);
      const at = (this.toInput(middle) * count) / this.input - 0.5;
      const within = Math.min(Math.max(at, first), end - 1) - first;
      found.lower.push(Math.floor(within));
      found.share.push(Math.fround(within - Math.floor(within)));
    }
    return found;
  }
}

function spans(picture, input, resize) {
  const [down, across] = [input[0] / picture[0], input[1] / picture[1]];
  const [least, most] = [Math.min(down, across), Math.max(down, across)];
  const each = (make) => [0, 1].map((side) => make(picture[side], input[side]));
  if (resize === "stretch" || (resize === "fit" && least > (1 - NEAR) * most)) {
    return each((own, side) => new Span(own, side, 0, own, 0, side));
  }
  if (resize === "crop") {
    return each((own, side) => {
      const length = Math.min(own, Math.max(1, nearestEven(side / most)));
      return new Span(own, side, Math.floor((own - length) / 2), length, 0, side);
    });
  }
  return each((own, side) => {
    const filled = Math.min(side, Math.max(1, nearestEven(own * least)));
    return new Span(own, side, 0, own, Math.floor((side - filled) / 2), filled);
  });
}

export class Placement {
  /** That of a picture of `height` × `width` in the input of a preprocessing. */
  constructor(height, width, preprocessing) {
    const input = [preprocessing.height, preprocessing.width];
    [this.down, this.across] = spans([height, width], input, preprocessing.resize);
    const both = [this.down, this.across];
    this.isCut = both.some((one) => one.length < one.picture);
    this.isWhole = !this.isCut && both.every((one) => one.filled === one.input);
  }

  /** A map over the input as one that lies evenly over the whole picture. What was not looked at
   * has its lowest value. */
  toPicture(map) {
    if (this.isWhole) return map;
    const [top, bottom] = this.down.places(map.height);
    const [left, right] = this.across.places(map.width);
    const rows = this.down.read(map.height);
    const columns = this.across.read(map.width);
    const last = [bottom - top - 1, right - left - 1];
    const at = (y, x) => map.values[(top + y) * map.width + left + x];
    let lowest = Infinity;
    for (let y = 0; y <= last[0]; y += 1) {
      for (let x = 0; x <= last[1]; x += 1) lowest = Math.min(lowest, at(y, x));
    }
    const made = emptyMap(rows.lower.length, columns.lower.length);
    const along = (y, nextY, share, x) => between(at(y, x), at(nextY, x), share);
    for (let y = 0, into = 0; y < made.height; y += 1) {
      const [upper, down] = [rows.lower[y], rows.share[y]];
      const below = Math.min(upper + 1, last[0]);
      for (let x = 0; x < made.width; x += 1, into += 1) {
        const [before, share] = [columns.lower[x], columns.share[x]];
        const after = Math.min(before + 1, last[1]);
        const value = between(
          along(upper, below, down, before), along(upper, below, down, after), share,
        );
        made.values[into] = rows.seen[y] && columns.seen[x] ? value : lowest;
      }
    }
    return made;
  }

  /** A box of the input, as shares of its sides, as one of the picture: x, y, width, height. */
  boxToPicture([left, top, width, height]) {
    const ends = [[this.across, left, width], [this.down, top, height]].map(
      ([span, start, length]) => [start, start + length].map((at) => {
        const share = span.toPicture(span.input * at) / span.picture;
        return Math.min(Math.max(share, 0), 1);
      }),
    );
    const [[x, right], [y, bottom]] = ends;
    return [x, y, right - x, bottom - y];
  }

  /** Of each pixel of the input, 1 where the area lies in its middle; where the area is so small
   * that it lies in no middle, in the pixels that it lies in. */
  inside(area) {
    const found = new Uint8Array(this.down.input * this.across.input);
    const cells = (span) => Array.from({ length: span.input }, (_, pixel) => {
      const at = Math.floor((span.toPicture(pixel + 0.5) * area.side) / span.picture);
      return at >= 0 && at < area.side ? at : -1;
    });
    const [rows, columns] = [cells(this.down), cells(this.across)];
    let any = 0;
    rows.forEach((row, y) => columns.forEach((column, x) => {
      const held = row >= 0 && column >= 0 ? area.grid[row * area.side + column] : 0;
      found[y * this.across.input + x] = held;
      any |= held;
    }));
    if (!any) this.#markSmall(area, found);
    return found;
  }

  #markSmall(area, found) {
    const at = (span, cell) => {
      return Math.floor(span.toInput(((cell + 0.5) * span.picture) / area.side));
    };
    area.grid.forEach((held, cell) => {
      if (!held) return;
      const y = at(this.down, Math.floor(cell / area.side));
      const x = at(this.across, cell % area.side);
      const isShown = y >= 0 && y < this.down.input && x >= 0 && x < this.across.input;
      if (isShown) found[y * this.across.input + x] = 1;
    });
  }
}

function between(value, next, share) {
  return Math.fround(value + Math.fround(Math.fround(next - value) * share));
}

/** A map h × w: its values row by row. */
export function emptyMap(height, width) {
  return { height, width, values: new Float32Array(height * width) };
}
