// What cv2.resize makes of 8-bit pixels, to the bit: the detector was fitted on pictures that
// OpenCV had resized. Pictures are H × W × 3 bytes, row by row.

const round = Math.fround;
const COEFFICIENT = 2048; // of the bilinear weights, which OpenCV keeps as whole numbers

/** To the nearest whole number, halves to the even one, as the processor rounds. */
export function nearestEven(value) {
  const floor = Math.floor(value);
  const rest = value - floor;
  if (rest !== 0.5) return rest > 0.5 ? floor + 1 : floor;
  return floor % 2 === 0 ? floor : floor + 1;
}

/** Area averaging where no side grows, bilinear otherwise. */
export function resize(pixels, height, width, toHeight, toWidth) {
  if (height === toHeight && width === toWidth) return pixels;
  if (width < toWidth || height < toHeight) {
    return bilinear(pixels, height, width, toHeight, toWidth);
  }
  if (height % toHeight === 0 && width % toWidth === 0) {
    return blocks(pixels, width, toHeight, toWidth, height / toHeight, width / toWidth);
  }
  return areas(pixels, height, width, toHeight, toWidth);
}

/** Means of whole blocks of `down` × `across` pixels. */
function blocks(pixels, width, toHeight, toWidth, down, across) {
  const made = new Uint8ClampedArray(toHeight * toWidth * 3);
  const share = round(1 / (down * across));
  const isQuarter = down === 2 && across === 2;
  for (let y = 0, at = 0; y < toHeight; y += 1) {
    for (let x = 0; x < toWidth; x += 1) {
      for (let channel = 0; channel < 3; channel += 1, at += 1) {
        let sum = 0;
        for (let row = 0; row < down; row += 1) {
          let from = ((y * down + row) * width + x * across) * 3 + channel;
          for (let column = 0; column < across; column += 1, from += 3) sum += pixels[from];
        }
        made[at] = isQuarter ? (sum + 2) >> 2 : nearestEven(round(round(sum) * share));
      }
    }
  }
  return made;
}

/** Which pixels of a side lie in each of the new ones, and with which weight. */
function shares(length, toLength) {
  const scale = 1 / (toLength / length);
  const found = { to: [], from: [], weight: [] };
  const add = (to, from, weight) => {
    found.to.push(to);
    found.from.push(from);
    found.weight.push(round(weight));
  };
  for (let to = 0; to < toLength; to += 1) {
    const start = to * scale;
    const end = start + scale;
    const width = Math.min(scale, length - start);
    const last = Math.min(Math.floor(end), length - 1);
    const first = Math.min(Math.ceil(start), last);
    if (first - start > 1e-3) add(to, first - 1, (first - start) / width);
    for (let from = first; from < last; from += 1) add(to, from, 1 / width);
    if (end - last > 1e-3) add(to, last, Math.min(end - last, 1, width) / width);
  }
  return found;
}

/** Means weighted by how much of each pixel lies in the new one. */
function areas(pixels, height, width, toHeight, toWidth) {
  const made = new Uint8ClampedArray(toHeight * toWidth * 3);
  const [down, across] = [shares(height, toHeight), shares(width, toWidth)];
  const length = toWidth * 3;
  const row = new Float32Array(length);
  const sum = new Float32Array(length);
  for (let each = 0; each < down.to.length; each += 1) {
    row.fill(0);
    addAcross(row, pixels, down.from[each] * width * 3, across);
    const weight = down.weight[each];
    for (let at = 0; at < length; at += 1) sum[at] += round(row[at] * weight);
    const y = down.to[each];
    if (down.to[each + 1] !== y) {
      for (let at = 0; at < length; at += 1) made[y * length + at] = nearestEven(sum[at]);
      sum.fill(0);
    }
  }
  return made;
}

function addAcross(row, pixels, start, { to, from, weight }) {
  for (let each = 0; each < to.length; each += 1) {
    const [into, source, share] = [to[each] * 3, start + from[each] * 3, weight[each]];
    row[into] += round(pixels[source] * share);
    row[into + 1] += round(pixels[source + 1] * share);
    row[into + 2] += round(pixels[source + 2] * share);
  }
}

/** Of each new place along a side the two pixels that it lies between, and their weights. */
function neighbours(length, toLength, clamped) {
  const scale = 1 / (toLength / length);
  const found = { first: [], second: [], near: [], far: [] };
  for (let to = 0; to < toLength; to += 1) {
    let at = round((to + 0.5) * scale - 0.5);
    let first = Math.floor(at);
    let far = round(at - first);
    if (clamped && first < 0) [first, far] = [0, 0];
    if (clamped && first >= length - 1) [first, far] = [length - 1, 0];
    const within = (place) => Math.min(Math.max(place, 0), length - 1);
    found.first.push(within(first));
    found.second.push(within(first + 1));
    found.near.push(nearestEven(round(round(1 - far) * COEFFICIENT)));
    found.far.push(nearestEven(round(far * COEFFICIENT)));
  }
  return found;
}

/** Between the four nearest pixels, in OpenCV's whole numbers. */
function bilinear(pixels, height, width, toHeight, toWidth) {
  const made = new Uint8ClampedArray(toHeight * toWidth * 3);
  const down = neighbours(height, toHeight, false);
  const across = neighbours(width, toWidth, true);
  const rows = new Map();
  const rowOf = (y) => {
    if (!rows.has(y)) {
      if (rows.size === 2) rows.delete(rows.keys().next().value);
      rows.set(y, between(pixels, y * width * 3, across));
    }
    return rows.get(y);
  };
  for (let y = 0, at = 0; y < toHeight; y += 1) {
    const [upper, lower] = [rowOf(down.first[y]), rowOf(down.second[y])];
    const [near, far] = [down.near[y], down.far[y]];
    for (let x = 0; x < upper.length; x += 1, at += 1) {
      const above = (near * (upper[x] >> 4)) >> 16;
      const below = (far * (lower[x] >> 4)) >> 16;
      made[at] = (above + below + 2) >> 2;
    }
  }
  return made;
}

function between(pixels, start, { first, second, near, far }) {
  const row = new Int32Array(first.length * 3);
  for (let x = 0, at = 0; x < first.length; x += 1) {
    const [left, right] = [start + first[x] * 3, start + second[x] * 3];
    for (let channel = 0; channel < 3; channel += 1, at += 1) {
      row[at] = pixels[left + channel] * near[x] + pixels[right + channel] * far[x];
    }
  }
  return row;
}
