// Regions of defects in a map: `blemish.regions.find_regions`.
// A map is { height, width, values } and lies evenly over the whole picture. `places`: 1 where on
// the map a region may be; null = anywhere.

const round = Math.fround;
const OUTLINE = 0.5; // a region ends where the map has fallen to this share of its height

/** The regions above a level, the highest peak first: { box: [x, y, width, height], area, peak,
 * mask } with `mask` the pixels of the box. */
export function findRegions(map, level, picture, { background, smallest, area, places }) {
  const count = map.height * map.width;
  const allowed = area ? [area.places(map.height, map.width)] : [];
  if (places) allowed.push(places);
  const above = Uint8Array.from({ length: count }, (_, at) => {
    return map.values[at] > round(level) && allowed.every((each) => each[at]) ? 1 : 0;
  });
  const needed = Math.max(1, Math.ceil(Number((smallest * count).toFixed(6))));
  const { labels, parts } = connected(above, map.height, map.width);
  return parts
    .filter((part) => part.area >= needed)
    .flatMap((part) => outlined(map, labels, part, level, picture, { background, area }))
    .sort((one, other) => other.peak - one.peak);
}

/** The 8-connected parts of a mask: the label of every place, 0 in none, and of each part its
 * label, its places and its rectangle. */
export function connected(mask, height, width) {
  const labels = new Int32Array(mask.length);
  const parts = [];
  for (let start = 0; start < mask.length; start += 1) {
    if (!mask[start] || labels[start]) continue;
    parts.push(filled(mask, labels, parts.length + 1, start, height, width));
  }
  return { labels, parts };
}

function filled(mask, labels, label, start, height, width) {
  const part = { label, area: 0, top: height, bottom: 0, left: width, right: 0 };
  const open = [start];
  labels[start] = label;
  while (open.length) {
    const at = open.pop();
    const [y, x] = [Math.floor(at / width), at % width];
    part.area += 1;
    part.top = Math.min(part.top, y);
    part.bottom = Math.max(part.bottom, y);
    part.left = Math.min(part.left, x);
    part.right = Math.max(part.right, x);
    for (let row = Math.max(y - 1, 0); row <= Math.min(y + 1, height - 1); row += 1) {
      for (let column = Math.max(x - 1, 0); column <= Math.min(x + 1, width - 1); column += 1) {
        const next = row * width + column;
        if (!mask[next] || labels[next]) continue;
        labels[next] = label;
        open.push(next);
      }
    }
  }
  return part;
}

function outlined(map, labels, part, level, picture, { background, area }) {
  const peak = highest(map, labels, part);
  const rows = reach(part.top, part.bottom, map.height, picture.height);
  const columns = reach(part.left, part.right, map.width, picture.width);
  const [height, width] = [rows[1] - rows[0], columns[1] - columns[0]];
  const down = places(rows, map.height, picture.height);
  const across = places(columns, map.width, picture.width);
  const values = interpolated((at) => map.values[at], map.width, down, across);
  const own = interpolated((at) => (labels[at] === part.label ? 1 : 0), map.width, down, across);
  const held = area ? area.mask(picture.height, picture.width, rows, columns) : null;
  const isOwn = own.map((share, at) => (share > 0 && (!held || held[at]) ? 1 : 0));
  if (!isOwn.includes(1)) return []; // a picture smaller than its map has no pixel there
  const limit = round(Math.max(level, background + OUTLINE * (peak - background)));
  const inside = Uint8Array.from(values, (value, at) => (value > limit && isOwn[at] ? 1 : 0));
  if (!inside.includes(1)) inside[highestOf(values, isOwn)] = 1;
  const pieces = connected(inside, height, width);
  return pieces.parts.map((piece) => region(piece, pieces.labels, values, width, rows, columns));
}

function highest(map, labels, part) {
  let peak = -Infinity;
  for (let y = part.top; y <= part.bottom; y += 1) {
    for (let x = part.left; x <= part.right; x += 1) {
      const at = y * map.width + x;
      if (labels[at] === part.label) peak = Math.max(peak, map.values[at]);
    }
  }
  return peak;
}

function highestOf(values, isOwn) {
  let best = -1;
  values.forEach((value, at) => {
    if (isOwn[at] && (best < 0 || value > values[best])) best = at;
  });
  return best;
}

function region(piece, labels, values, width, rows, columns) {
  const size = [piece.right - piece.left + 1, piece.bottom - piece.top + 1];
  const mask = new Uint8Array(size[0] * size[1]);
  let peak = -Infinity;
  for (let y = piece.top, into = 0; y <= piece.bottom; y += 1) {
    for (let x = piece.left; x <= piece.right; x += 1, into += 1) {
      if (labels[y * width + x] !== piece.label) continue;
      mask[into] = 1;
      peak = Math.max(peak, values[y * width + x]);
    }
  }
  const box = [columns[0] + piece.left, rows[0] + piece.top, ...size];
  return { box, area: piece.area, peak, mask };
}

/** The pixels [first, end) of a side that the places `first` to `last` of the map reach. */
function reach(first, last, count, pixels) {
  const scale = pixels / count;
  const start = Math.max(Math.floor((first - 0.5) * scale), 0);
  return [start, Math.min(Math.ceil((last + 1.5) * scale), pixels)];
}

/** Of each pixel the two places of the map that it lies between, and the share of the other. */
function places([start, end], count, pixels) {
  return Array.from({ length: end - start }, (_, each) => {
    const at = (start + each + 0.5) * (count / pixels) - 0.5;
    const within = Math.min(Math.max(at, 0), count - 1);
    const before = Math.floor(within);
    return [before, Math.min(before + 1, count - 1), round(within - before)];
  });
}

function interpolated(valueAt, width, down, across) {
  const made = new Float32Array(down.length * across.length);
  let into = 0;
  for (const [above, below, share] of down) {
    const rest = round(1 - share);
    const row = (x) => {
      const upper = round(valueAt(above * width + x) * rest);
      return round(upper + round(valueAt(below * width + x) * share));
    };
    for (const [before, after, far] of across) {
      made[into] = round(row(before) * round(1 - far)) + round(row(after) * far);
      into += 1;
    }
  }
  return made;
}
