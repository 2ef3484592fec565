// The part told from its background: `blemish.methods.foreground`, and what is left of a score
// where the part alone counts: `blemish.detector.scoring`. Masks are Uint8Array, row by row.

import { nearestEven } from "./resize.js";
import { connected } from "./regions.js";

const HALF = 0.5 + 1e-6; // a place that is half in the part does not count
const UNIT = 65536; // of a place along a row, in the whole numbers that OpenCV draws with
const CROSS = [[0, 0], [-1, 0], [1, 0], [0, -1], [0, 1]];
const SQUARE = [-1, 0, 1].flatMap((y) => [-1, 0, 1].map((x) => [y, x]));

/** { score, map, counted } where the part alone counts; `counted` is null where all of the picture
 * does, as no part could be told. */
export function masked(score, map, part, { foreground, top_fraction: fraction, offset }, area) {
  const within = area ? area.places(map.height, map.width) : new Uint8Array(map.values.length).fill(1);
  let inside = insideOf(part, foreground, area, map, offset).map((one, at) => one & within[at]);
  if (!inside.includes(1)) inside = within;
  const size = sum(within);
  const isWhole = sum(inside) === size;
  const counted = Array.from(map.values).filter((_, at) => inside[at]).sort((a, b) => b - a);
  const highest = counted.slice(0, Math.max(1, nearestEven(fraction * size)));
  const mean = highest.reduce((total, value) => total + value, 0) / highest.length;
  const lowest = counted.at(-1);
  const shown = map.values.map((value, at) => (inside[at] ? value : lowest));
  return {
    score: isWhole ? score : Math.min(score, Math.fround(mean)),
    map: { ...map, values: shown },
    counted: isWhole ? null : inside,
  };
}

/** Of each place of a map whether the part is there; everywhere, where what was told is not
 * plausible. */
export function insideOf(part, { cut, least, most }, area, map, offset) {
  const { height, width, values } = part;
  const within = area ? area.places(height, width) : new Uint8Array(values.length).fill(1);
  const raw = Uint8Array.from(values, (value) => (value > Math.fround(cut) ? 1 : 0));
  const told = filled(raw, height, width).map((one, at) => one & within[at]);
  const share = sum(told) / sum(within);
  const isPlausible = share > 0 && share >= least / 2 && 1 - share >= (1 - most) / 2;
  if (!isPlausible) told.fill(1);
  const down = spread(height, map.height, offset);
  const across = spread(width, map.width, offset);
  const found = new Uint8Array(map.height * map.width);
  let into = 0;
  for (const [above, below, share] of down) {
    const row = (x) => told[above * width + x] * (1 - share) + told[below * width + x] * share;
    for (const [before, after, far] of across) {
      found[into] = row(before) * (1 - far) + row(after) * far > HALF ? 1 : 0;
      into += 1;
    }
  }
  return found;
}

/** Of each of `side` places the two cells that it lies between, and the share of the second. */
function spread(cells, side, offset) {
  return Array.from({ length: side }, (_, place) => {
    const at = (place + 0.5) * (cells / side) - 0.5 - offset;
    const within = Math.min(Math.max(at, 0), cells - 1);
    const before = Math.floor(within);
    return [before, Math.min(before + 1, cells - 1), Math.fround(within - before)];
  });
}

/** Each connected part of a mask filled up to its convex hull, then all dilated by one place and
 * closed. */
export function filled(raw, height, width) {
  const { labels, parts } = connected(raw, height, width);
  const points = parts.map(() => []);
  labels.forEach((label, at) => {
    if (label) points[label - 1].push([at % width, Math.floor(at / width)]);
  });
  const made = new Uint8Array(raw.length);
  for (const each of points) fillConvex(made, width, hull(each));
  const dilated = neighboured(made, height, width, CROSS, true);
  return closed(dilated, height, width);
}

/** Closing by a square, as if nothing were around the mask. */
function closed(mask, height, width) {
  const [tall, wide] = [height + 4, width + 4];
  const padded = new Uint8Array(tall * wide);
  mask.forEach((one, at) => {
    padded[(Math.floor(at / width) + 2) * wide + (at % width) + 2] = one;
  });
  const dilated = neighboured(padded, tall, wide, SQUARE, true);
  const eroded = neighboured(dilated, tall, wide, SQUARE, false);
  return mask.map((_, at) => eroded[(Math.floor(at / width) + 2) * wide + (at % width) + 2]);
}

/** Dilation where any neighbour counts, erosion where all do; those outside never decide. */
function neighboured(mask, height, width, shape, isAny) {
  return mask.map((_, at) => {
    const [y, x] = [Math.floor(at / width), at % width];
    for (const [down, across] of shape) {
      const [row, column] = [y + down, x + across];
      if (row < 0 || column < 0 || row >= height || column >= width) continue;
      if (Boolean(mask[row * width + column]) === isAny) return isAny ? 1 : 0;
    }
    return isAny ? 0 : 1;
  });
}

/** The corners of the convex hull of points [x, y], in order, without those on its sides. */
function hull(points) {
  const sorted = points.toSorted(([x, y], [toX, toY]) => x - toX || y - toY);
  if (sorted.length < 2) return sorted;
  const half = (ordered) => {
    const chain = [];
    for (const point of ordered) {
      while (chain.length > 1 && !turns(chain.at(-2), chain.at(-1), point)) chain.pop();
      chain.push(point);
    }
    return chain.slice(0, -1);
  };
  return [...half(sorted), ...half(sorted.toReversed())];
}

function turns([x, y], [nextX, nextY], [lastX, lastY]) {
  return (nextX - x) * (lastY - y) - (nextY - y) * (lastX - x) > 0;
}

/** Fills a convex polygon as cv2.fillConvexPoly does: its sides, and the rows between them. */
function fillConvex(mask, width, corners) {
  corners.forEach((corner, at) => drawLine(mask, width, corners.at(at - 1), corner));
  const rows = corners.map(([, y]) => y);
  const first = rows.indexOf(Math.min(...rows));
  const sides = [1, corners.length - 1].map((step) => side(corners, first, step));
  for (let y = rows[first]; y <= Math.max(...rows); y += 1) {
    const ends = sides.map((at) => at(y)).sort((one, other) => one - other);
    const [left, right] = ends.map((at) => Math.floor((at + UNIT / 2) / UNIT));
    mask.fill(1, y * width + left, y * width + right + 1);
  }
}

/** Where a side of a polygon, followed from its uppermost corner, meets a row; rows rise. */
function side(corners, first, step) {
  let [at, end, x, slope] = [first, corners[first][1], corners[first][0] * UNIT, 0];
  return (y) => {
    if (y >= end) {
      for (let left = corners.length; left > 0; left -= 1) {
        const [from, to] = [corners[at], corners[(at + step) % corners.length]];
        if (to[1] > y) {
          const rows = to[1] - y;
          slope = Math.trunc(((to[0] - from[0]) * UNIT * 2 + rows) / (2 * rows));
          [x, end] = [from[0] * UNIT, to[1]];
          at = (at + step) % corners.length;
          break;
        }
        if (to[1] < from[1]) break; // the lowest corner: what rises again is the other side's
        at = (at + step) % corners.length;
        [x, slope] = [to[0] * UNIT, 0];
      }
    }
    const found = x;
    x += slope;
    return found;
  };
}

/** A line by Bresenham's steps, as OpenCV takes them: from the left to the right. */
function drawLine(mask, width, one, other) {
  const [start, end] = one[0] <= other[0] ? [one, other] : [other, one];
  const [across, down] = [end[0] - start[0], Math.abs(end[1] - start[1])];
  const fall = end[1] < start[1] ? -1 : 1;
  const isSteep = down > across;
  const [long, short] = isSteep ? [down, across] : [across, down];
  let [x, y, error] = [start[0], start[1], long - 2 * short];
  for (let each = 0; each <= long; each += 1) {
    mask[y * width + x] = 1;
    const isAside = error < 0;
    error += isAside ? 2 * (long - short) : -2 * short;
    if (isSteep || isAside) y += fall;
    if (!isSteep || isAside) x += 1;
  }
}

function sum(mask) {
  return mask.reduce((total, one) => total + one, 0);
}
