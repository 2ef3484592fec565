// The picture and what is laid over it. Every layer has its own canvas, one above the other, each
// stretched over the whole picture.

const LONGEST = 2048; // pixels of the side of a layer: more are not seen

/** The picture itself. */
export function drawPicture(canvas, bitmap) {
  const factor = Math.min(1, LONGEST / Math.max(bitmap.width, bitmap.height));
  canvas.width = Math.max(1, Math.round(bitmap.width * factor));
  canvas.height = Math.max(1, Math.round(bitmap.height * factor));
  const context = canvas.getContext("2d");
  context.imageSmoothingQuality = "high";
  context.fillStyle = "white";
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
}

/** The tint of a map: nothing at the low end of the scale, the more the higher, full from its
 * middle on. `colours`: 256 colours as hexadecimal digits. */
export function drawHeatmap(canvas, map, [low, high], colours) {
  const image = new ImageData(map.width, map.height);
  const table = Array.from({ length: 256 * 3 }, (_, at) => {
    return parseInt(colours.slice(2 * at, 2 * at + 2), 16);
  });
  map.values.forEach((value, at) => {
    const level = Math.round(Math.min(Math.max((value - low) / (high - low), 0), 1) * 255);
    for (let channel = 0; channel < 3; channel += 1) {
      image.data[at * 4 + channel] = table[level * 3 + channel];
    }
    image.data[at * 4 + 3] = Math.round(Math.min((2 * level) / 255, 1) * 255);
  });
  [canvas.width, canvas.height] = [map.width, map.height];
  canvas.getContext("2d").putImageData(image, 0, 0);
}

/** A grey veil over what was not looked at: outside the area, and outside what the input shows. */
export function drawUnseen(canvas, area, { height, width, shown }) {
  const side = area ? area.side : 256;
  [canvas.width, canvas.height] = [side, side];
  const image = new ImageData(side, side);
  const [rows, columns] = [[height, shown[0]], [width, shown[1]]].map(([total, [start, length]]) => {
    return Array.from({ length: side }, (_, at) => {
      const place = ((at + 0.5) * total) / side;
      return place >= start && place < start + length;
    });
  });
  for (let y = 0, at = 0; y < side; y += 1) {
    for (let x = 0; x < side; x += 1, at += 1) {
      const isSeen = rows[y] && columns[x] && (!area || area.grid[at]);
      if (!isSeen) image.data.set([128, 128, 128, (x + y) % 32 < 16 ? 200 : 170], at * 4);
    }
  }
  canvas.getContext("2d").putImageData(image, 0, 0);
}

/** The same veil over the places of a map that do not count. */
export function drawUncounted(canvas, { height, width }, counted) {
  const image = new ImageData(width, height);
  counted.forEach((isCounted, at) => {
    if (!isCounted) image.data.set([128, 128, 128, 170], at * 4);
  });
  [canvas.width, canvas.height] = [width, height];
  canvas.getContext("2d").putImageData(image, 0, 0);
}

/** A light and a dark line around every region, and around the crop that was looked at again. */
export function drawOutlines(canvas, regions, box, { height, width }, size) {
  [canvas.width, canvas.height] = [size.width, size.height];
  const context = canvas.getContext("2d");
  const factor = [canvas.width / width, canvas.height / height];
  const path = new Path2D();
  for (const one of regions) addBorder(path, one, factor);
  const line = Math.max(1.5, Math.max(canvas.width, canvas.height) / 400);
  stroke(context, path, line, []);
  if (!box) return;
  const crop = new Path2D();
  const [x, y, wide, tall] = box;
  crop.rect(x * canvas.width, y * canvas.height, wide * canvas.width, tall * canvas.height);
  stroke(context, crop, line, [4 * line, 3 * line]);
}

function stroke(context, path, line, dashes) {
  context.lineCap = "square";
  context.setLineDash(dashes);
  for (const [colour, width] of [["black", 3 * line], ["white", line]]) {
    context.strokeStyle = colour;
    context.lineWidth = width;
    context.stroke(path);
  }
}

/** The edges between pixels of a region and others. */
function addBorder(path, { box: [left, top, width, height], mask }, [across, down]) {
  const has = (x, y) => x >= 0 && y >= 0 && x < width && y < height && mask[y * width + x] === 1;
  const line = (x, y, toX, toY) => {
    path.moveTo((left + x) * across, (top + y) * down);
    path.lineTo((left + toX) * across, (top + toY) * down);
  };
  const runs = (count, isEdge, add) => {
    for (let at = 0, start = -1; at <= count; at += 1) {
      const edge = at < count && isEdge(at);
      if (edge && start < 0) start = at;
      if (!edge && start >= 0) {
        add(start, at);
        start = -1;
      }
    }
  };
  for (let y = 0; y <= height; y += 1) {
    runs(width, (x) => has(x, y - 1) !== has(x, y), (from, to) => line(from, y, to, y));
  }
  for (let x = 0; x <= width; x += 1) {
    runs(height, (y) => has(x - 1, y) !== has(x, y), (from, to) => line(x, from, x, to));
  }
}
