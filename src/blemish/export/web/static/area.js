// The part of a picture that is looked at, on a grid laid over the whole of it: `blemish.area`.

const SIDE = 1024;

export class Area {
  /** `runs`: how many places of the grid lie outside, then how many inside, and so on. */
  constructor(runs) {
    this.side = SIDE;
    this.grid = new Uint8Array(SIDE * SIDE);
    let at = 0;
    runs.forEach((length, each) => {
      this.grid.fill(each % 2, at, at + length);
      at += length;
    });
  }

  /** Of each pixel of a picture, 1 where its centre lies inside. Optionally of a part of it:
   * rows [top, bottom), columns [left, right). */
  mask(height, width, [top, bottom] = [0, height], [left, right] = [0, width]) {
    const cell = (pixel, side) => Math.floor(((2 * pixel + 1) * SIDE) / (2 * side));
    const found = new Uint8Array((bottom - top) * (right - left));
    let at = 0;
    for (let y = top; y < bottom; y += 1) {
      const row = cell(y, height) * SIDE;
      for (let x = left; x < right; x += 1, at += 1) found[at] = this.grid[row + cell(x, width)];
    }
    return found;
  }

  /** Of each place of a map, 1 where any of it lies inside. */
  places(height, width) {
    const ends = (part, count) => {
      return [Math.floor((part * SIDE) / count), Math.ceil(((part + 1) * SIDE) / count)];
    };
    const found = new Uint8Array(height * width);
    for (let y = 0; y < height; y += 1) {
      for (let x = 0; x < width; x += 1) {
        found[y * width + x] = this.#any(ends(y, height), ends(x, width));
      }
    }
    return found;
  }

  #any([top, bottom], [left, right]) {
    for (let y = top; y < bottom; y += 1) {
      for (let x = left; x < right; x += 1) if (this.grid[y * SIDE + x]) return 1;
    }
    return 0;
  }
}
