// A picture from a file to the pixels that evaluation takes, as OpenCV computes them in integers: see serving.py.

const SCALE = 2 ** 11;    // OpenCV's coefficients are multiples of 1 / SCALE

// The pixels of a file that the browser decodes: turned by EXIF, colours as they are in the file. ImageData, RGBA.
export async function decode(file) {
  const options = {imageOrientation: 'from-image', colorSpaceConversion: 'none', premultiplyAlpha: 'none'};
  const bitmap = await createImageBitmap(file, options);
  const canvas = document.createElement('canvas');
  canvas.width = bitmap.width;
  canvas.height = bitmap.height;
  const context = canvas.getContext('2d', {willReadFrequently: true});
  context.drawImage(bitmap, 0, 0);
  bitmap.close();
  return context.getImageData(0, 0, canvas.width, canvas.height);
}

// Of `kept` pixels in the middle of a side that is resized from `size` to `resized`: the positions of the four pixels that each comes
// from, and their coefficients. Cubic, a = -0.75, between pixel centres, with the edge repeated.
function cubicTaps(size, resized, kept) {
  const first = Math.floor((resized - kept) / 2), a = -0.75, taps = [];
  for (let i = 0; i < kept; i++) {
    const centre = Math.fround((first + i + 0.5) * (size / resized) - 0.5), start = Math.floor(centre), x = centre - start;
    const w0 = ((a * (x + 1) - 5 * a) * (x + 1) + 8 * a) * (x + 1) - 4 * a;
    const w1 = ((a + 2) * x - (a + 3)) * x * x + 1;
    const w2 = ((a + 2) * (1 - x) - (a + 3)) * (1 - x) * (1 - x) + 1;
    taps.push([w0, w1, w2, 1 - w0 - w1 - w2].map((weight, k) =>
      [Math.min(Math.max(start - 1 + k, 0), size - 1), Math.round(weight * SCALE)]));
  }
  return taps;
}

// ImageData with its shorter side resized to 256/224 of `kept` pixels, and cropped to the middle `kept` x `kept`: Uint8Array, RGB.
export function evaluationCrop({data, width, height}, kept) {
  const shorter = Math.round(kept * 256 / 224), scale = shorter / Math.min(width, height);
  const rows = cubicTaps(height, height <= width ? shorter : Math.floor(scale * height + 0.5), kept);
  const columns = cubicTaps(width, width <= height ? shorter : Math.floor(scale * width + 0.5), kept);
  const left = Math.min(...columns.map(taps => taps[0][0])), right = Math.max(...columns.map(taps => taps[3][0]));
  const across = new Int32Array(3 * width), pixels = new Uint8ClampedArray(kept * kept * 3);
  rows.forEach((taps, y) => {
    for (let x = left; x <= right; x++) {
      for (let c = 0; c < 3; c++) {
        across[3 * x + c] = taps.reduce((sum, [row, weight]) => sum + weight * data[4 * (row * width + x) + c], 0);
      }
    }
    columns.forEach((taps, x) => {
      for (let c = 0; c < 3; c++) {
        const sum = taps.reduce((sum, [column, weight]) => sum + weight * across[3 * column + c], 0);
        pixels[3 * (y * kept + x) + c] = Math.floor(sum / SCALE / SCALE + 0.5);
      }
    });
  });
  return new Uint8Array(pixels.buffer);
}
