// Pictures as they come, and how alike two of them are.

// The PNG file of an event.
export function fileOf(base64) {
  const bytes = Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
  return new Blob([bytes], { type: "image/png" });
}

// Peak signal-to-noise ratio in dB of two PNG files of the same size, over all pixels and colours; Infinity for equal ones.
export async function psnr(first, second) {
  const [one, other] = [await pixels(first), await pixels(second)];
  if (one.width !== other.width || one.height !== other.height) {
    throw new RangeError("the pictures differ in size");
  }
  let sum = 0;
  for (let place = 0; place < one.data.length; place += 4) {
    for (let colour = place; colour < place + 3; colour += 1) {
      sum += (one.data[colour] - other.data[colour]) ** 2;
    }
  }
  const mean = sum / (one.width * one.height * 3) / 255 ** 2;
  return mean === 0 ? Infinity : -10 * Math.log10(mean);
}

async function pixels(file) {
  const bitmap = await createImageBitmap(file, { colorSpaceConversion: "none", premultiplyAlpha: "none" });
  const context = new OffscreenCanvas(bitmap.width, bitmap.height).getContext("2d", { willReadFrequently: true });
  context.drawImage(bitmap, 0, 0);
  return context.getImageData(0, 0, bitmap.width, bitmap.height);
}
