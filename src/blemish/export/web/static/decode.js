// The pixels of a picture as the browser decodes it: upright, 8 bits, its colour profile ignored,
// transparency composed over white, as `blemish.images` does.

const BAND = 4_000_000; // pixels that are drawn at a time: canvases have a largest size
const MOST = 200_000_000; // pixels of a picture
const OPTIONS = {
  imageOrientation: "from-image", premultiplyAlpha: "none", colorSpaceConversion: "none",
};

/** { height, width, pixels, bitmap, notes } of a file or of a frame of a camera (ImageBitmap).
 * Throws an Error that says what is wrong with it. */
export async function decode(source) {
  const isFile = source instanceof Blob;
  const notes = isFile ? checked(new Uint8Array(await source.arrayBuffer())) : [];
  const bitmap = isFile ? await opened(source) : source;
  const { width, height } = bitmap;
  if (width * height > MOST) {
    throw new Error(`is ${width} × ${height} pixels, more than this page takes`);
  }
  const { pixels, isTransparent } = read(bitmap);
  if (isTransparent) notes.push("transparency composed over white");
  return { height, width, pixels, bitmap, notes };
}

async function opened(file) {
  try {
    return await createImageBitmap(file, OPTIONS);
  } catch {
    throw new Error("is damaged: the browser cannot decode it");
  }
}

/** Notes on what the file holds. Throws for a file that is no picture, or not whole. */
function checked(bytes) {
  const kind = KINDS.find(({ signature }) => signature.every(([at, value]) => bytes[at] === value));
  if (!kind) {
    throw new Error(bytes.length ? "is no PNG, JPEG, WebP or BMP picture" : "is empty");
  }
  if (!kind.isWhole(bytes)) throw new Error(`is a ${kind.name} file of which the end is missing`);
  const isDeep = kind.name === "PNG" && bytes[24] === 16;
  return isDeep ? ["16 bits a channel, of which the browser reads 8: the score may differ a little "
    + "from that of blemish predict"] : [];
}

const text = (letters, at = 0) => [...letters].map((one, each) => [at + each, one.charCodeAt(0)]);
const KINDS = [
  { name: "PNG", signature: [[0, 0x89], ...text("PNG\r\n\x1a\n", 1)], isWhole: isWholePng },
  { name: "JPEG", signature: [[0, 0xff], [1, 0xd8], [2, 0xff]], isWhole: isWholeJpeg },
  { name: "WebP", signature: [...text("RIFF"), ...text("WEBP", 8)], isWhole: isWholeWebp },
  { name: "BMP", signature: text("BM"), isWhole: isWholeBmp },
];

function isWholePng(bytes) {
  const view = new DataView(bytes.buffer);
  const end = 0x49454e44; // "IEND"
  for (let at = 8; at + 12 <= bytes.length; at += 12 + view.getUint32(at)) {
    if (view.getUint32(at + 4) === end) return true;
  }
  return false;
}

/** From mark to mark to that of the end (FF D9); what a scan holds has none but restarts. */
function isWholeJpeg(bytes) {
  const isRestart = (mark) => mark >= 0xd0 && mark <= 0xd7;
  let at = 2;
  while (at + 3 < bytes.length + 2) {
    const mark = bytes[at + 1];
    if (bytes[at] !== 0xff || mark === 0xff) at += 1;
    else if (mark === 0xd9) return true;
    else if (mark === 0 || isRestart(mark)) at += 2;
    else at += 2 + ((bytes[at + 2] << 8) | bytes[at + 3]);
  }
  return false;
}

function isWholeWebp(bytes) {
  return new DataView(bytes.buffer).getUint32(4, true) + 8 <= bytes.length;
}

function isWholeBmp(bytes) {
  if (bytes.length < 26) return false;
  return new DataView(bytes.buffer).getUint32(10, true) < bytes.length;
}

/** RGB of a bitmap, and whether any of it is transparent. */
function read(bitmap) {
  const { width, height } = bitmap;
  const step = Math.min(height, Math.max(1, Math.floor(BAND / width)));
  const canvas = new OffscreenCanvas(width, step);
  const context = canvas.getContext("2d", { willReadFrequently: true, colorSpace: "srgb" });
  const pixels = new Uint8ClampedArray(height * width * 3);
  let isTransparent = false;
  for (let top = 0; top < height; top += step) {
    const rows = Math.min(step, height - top);
    context.clearRect(0, 0, width, step);
    context.drawImage(bitmap, 0, -top);
    const { data } = context.getImageData(0, 0, width, rows);
    isTransparent = overWhite(data, pixels, top * width * 3) || isTransparent;
  }
  return { pixels, isTransparent };
}

function overWhite(data, pixels, start) {
  let isTransparent = false;
  for (let from = 0, into = start; from < data.length; from += 4, into += 3) {
    const alpha = data[from + 3];
    for (let channel = 0; channel < 3; channel += 1) {
      const value = data[from + channel];
      pixels[into + channel] = alpha === 255
        ? value : Math.floor((value * alpha + 255 * (255 - alpha) + 127) / 255);
    }
    isTransparent ||= alpha !== 255;
  }
  return isTransparent;
}

/** Whether pixels come back from a canvas as they were: some browsers change them, so that people
 * cannot be told apart by their computers. */
export async function readsFaithfully() {
  const data = new ImageData(64, 64);
  data.data.forEach((_, at) => {
    data.data[at] = at % 4 === 3 ? 255 : (at * 97 + (at >> 5) * 31) % 256;
  });
  const { pixels } = read(await createImageBitmap(data, OPTIONS));
  return pixels.every((value, at) => value === data.data[Math.floor(at / 3) * 4 + (at % 3)]);
}
