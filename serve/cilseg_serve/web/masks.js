// Class maps: reading the ids out of a palette PNG exactly, and painting them.
// A canvas would give colours instead of ids, and two classes may share a colour.

const SIGNATURE = [0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a];

/** Read an 8-bit palette PNG without interlace: {width, height, ids: Uint8Array}. */
export async function readMask(base64) {
  const data = Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
  if (!SIGNATURE.every((value, i) => data[i] === value)) throw new Error("the mask is no PNG.");
  const view = new DataView(data.buffer);
  let width = 0;
  let height = 0;
  const parts = [];
  for (let at = 8; at < data.length; ) {
    const length = view.getUint32(at);
    const kind = String.fromCharCode(...data.subarray(at + 4, at + 8));
    if (kind === "IHDR") {
      [width, height] = [view.getUint32(at + 8), view.getUint32(at + 12)];
      const [depth, color, , , interlace] = data.subarray(at + 16, at + 21);
      if (depth !== 8 || (color !== 3 && color !== 0) || interlace) throw new Error("the mask is in an unknown form.");
    } else if (kind === "IDAT") parts.push(data.subarray(at + 8, at + 8 + length));
    at += 12 + length;
  }
  const stream = new Blob(parts).stream().pipeThrough(new DecompressionStream("deflate"));
  const rows = new Uint8Array(await new Response(stream).arrayBuffer());
  return { width, height, ids: unfilter(rows, width, height) };
}

/** Undo the row filters of PNG (one byte a pixel). */
function unfilter(rows, width, height) {
  const ids = new Uint8Array(width * height);
  for (let y = 0; y < height; y++) {
    const filter = rows[y * (width + 1)];
    const from = y * (width + 1) + 1;
    const to = y * width;
    for (let x = 0; x < width; x++) {
      const left = x ? ids[to + x - 1] : 0;
      const up = y ? ids[to + x - width] : 0;
      const corner = x && y ? ids[to + x - width - 1] : 0;
      ids[to + x] = rows[from + x] + [0, left, up, (left + up) >> 1, paeth(left, up, corner)][filter];
    }
  }
  return ids;
}

function paeth(left, up, corner) {
  const [a, b, c] = [Math.abs(up - corner), Math.abs(left - corner), Math.abs(left + up - 2 * corner)];
  return a <= b && a <= c ? left : b <= c ? up : corner;
}

/** Ask for the mask of an image file: what the server answers, with `mask` and `seconds` (there and back). */
export async function segment(ask, blob, { model, version, signal } = {}) {
  const query = new URLSearchParams({ format: "json", mask: "true" });
  if (model) query.set("model", model);
  if (version) query.set("version", version);
  const started = performance.now();
  const answer = await (await ask(`v1/segment?${query}`, { method: "POST", body: blob, signal })).json();
  const seconds = (performance.now() - started) / 1000;
  const names = Object.keys(answer.coverage);
  return { ...answer, names, seconds, mask: await readMask(answer.mask_png) };
}

/** Return the mask as an image, in the colours of its classes; `hidden` holds names of classes left out. */
export function paint(result, hidden) {
  const { width, height, ids } = result.mask;
  const table = new Uint32Array(256);
  const bytes = new Uint8Array(table.buffer);
  result.names.forEach((name, id) => {
    if (hidden.has(name)) return;
    const value = parseInt(result.colors[name].slice(1), 16);
    bytes.set([value >> 16, (value >> 8) & 255, value & 255, 255], 4 * id);
  });
  const image = new ImageData(width, height);
  const pixels = new Uint32Array(image.data.buffer);
  for (let i = 0; i < ids.length; i++) pixels[i] = table[ids[i]];
  const canvas = document.createElement("canvas");
  canvas.width = width;
  canvas.height = height;
  canvas.getContext("2d").putImageData(image, 0, 0);
  return canvas;
}

/** Draw picture and masks; `split` (0 to 1) is how much of the width the first mask has, beside a second one. */
export function draw(canvas, picture, results, { hidden, opacity, split }) {
  const { width, height } = results[0]?.mask ?? picture;
  canvas.width = width;
  canvas.height = height;
  canvas.style.maxWidth = `calc(75vh * ${width / height})`; // the style sheet stretches it to the column
  const context = canvas.getContext("2d", { willReadFrequently: true });
  if (picture) context.drawImage(picture, 0, 0, width, height);
  else context.clearRect(0, 0, width, height);
  const middle = results.length > 1 ? Math.round(split * width) : width;
  results.forEach((result, index) => {
    const [x, w] = index ? [middle, width - middle] : [0, middle];
    if (w <= 0) return;
    context.globalAlpha = opacity;
    context.drawImage(paint(result, hidden), x, 0, w, height, x, 0, w, height);
    context.globalAlpha = 1;
  });
  if (results.length > 1 && middle > 0 && middle < width) {
    const line = Math.max(2, Math.round(width / 250));
    context.fillStyle = "#000";
    context.fillRect(middle - line, 0, 2 * line, height);
    context.fillStyle = "#fff";
    context.fillRect(middle - line / 2, 0, line, height);
  }
}
