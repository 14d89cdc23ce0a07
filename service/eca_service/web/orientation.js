// The service applies the EXIF orientation of every format; browsers do not apply that of a WebP, nor of a PNG that has it
// behind the pixels (Chromium 156). Results are drawn over the image as the service has seen it, so it is turned here.

// From stored to upright pixels by orientation, for CanvasRenderingContext2D.setTransform: of width w and height h.
const TRANSFORMS = {
  2: (w, h) => [-1, 0, 0, 1, w, 0],
  3: (w, h) => [-1, 0, 0, -1, w, h],
  4: (w, h) => [1, 0, 0, -1, 0, h],
  5: (w, h) => [0, 1, 1, 0, 0, 0],
  6: (w, h) => [0, 1, -1, 0, h, 0],
  7: (w, h) => [0, -1, -1, 0, h, w],
  8: (w, h) => [0, -1, 1, 0, 0, w],
};
const ORIENTATION_TAG = 0x0112;

// An upright copy of a WebP or PNG that has an orientation; null where the file can be shown as it is.
export async function uprightCopy(file) {
  const data = new DataView(await file.arrayBuffer());
  const exif = findExif(data), transform = exif && TRANSFORMS[readOrientation(exif.tiff)];
  if (!transform) return null;
  // Without the EXIF, no browser turns it a second time.
  const parts = [data.buffer.slice(0, exif.begin), data.buffer.slice(exif.end)];
  if (exif.isWebp) new DataView(parts[0]).setUint32(4, data.getUint32(4, true) - (exif.end - exif.begin), true);
  const stored = await createImageBitmap(new Blob(parts, { type: file.type }));
  const canvas = document.createElement("canvas"), matrix = transform(stored.width, stored.height);
  [canvas.width, canvas.height] = matrix[0] ? [stored.width, stored.height] : [stored.height, stored.width];
  const context = canvas.getContext("2d");
  context.setTransform(...matrix);
  context.drawImage(stored, 0, 0);
  stored.close();
  return new Promise((done) => canvas.toBlob(done, "image/webp"));
}

// The chunk of a WebP or a PNG that holds the EXIF.
function findExif(data) {
  const nameAt = (place) => String.fromCharCode(...new Uint8Array(data.buffer, place, 4));
  try {
    const isWebp = nameAt(8) === "WEBP";
    // A WebP says in its first chunk whether it has EXIF.
    if (nameAt(12) !== (isWebp ? "VP8X" : "IHDR") || (isWebp && !(data.getUint8(20) & 8))) return null;
    for (let begin = isWebp ? 12 : 8, end; ; begin = end) {
      const size = data.getUint32(begin + (isWebp ? 4 : 0), isWebp);
      end = begin + (isWebp ? 8 + size + (size % 2) : 12 + size);
      if (nameAt(begin + (isWebp ? 0 : 4)) === (isWebp ? "EXIF" : "eXIf")) {
        return { isWebp, begin, end, tiff: new DataView(data.buffer, begin + 8, size) };
      }
    }
  } catch (error) {
    if (error instanceof RangeError) return null;
    throw error;
  }
}

// 1 to 8; 1 is upright.
function readOrientation(exif) {
  try {
    const start = exif.getUint32(0) === 0x45786966 ? 6 : 0; // "Exif\0\0", which some programs write before it.
    const isLittle = exif.getUint16(start) !== 0x4d4d;
    const directory = start + exif.getUint32(start + 4, isLittle);
    const end = directory + 2 + 12 * exif.getUint16(directory, isLittle);
    for (let entry = directory + 2; entry < end; entry += 12) {
      if (exif.getUint16(entry, isLittle) === ORIENTATION_TAG) return exif.getUint16(entry + 8, isLittle);
    }
  } catch (error) {
    if (!(error instanceof RangeError)) throw error;
  }
  return 1;
}
