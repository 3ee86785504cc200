// How images come in: chosen, dropped or pasted; and the small picture that is kept of each.

import { find } from "./dom.js";

const THUMB_PIXELS = 144; // shown at half of it, sharp on dense screens

/** Let `onFiles(files)` hear of every image that is chosen, dropped or pasted. */
export function takeImages(onFiles) {
  const field = find("files");
  field.addEventListener("change", () => {
    onFiles([...field.files]);
    field.value = ""; // so that the same file can be chosen again
  });

  const zone = find("drop");
  let depth = 0; // a drag enters and leaves every element on its way
  const carriesFiles = (event) => event.dataTransfer?.types.includes("Files");
  const mark = (change) => {
    depth = Math.max(0, depth + change);
    zone.classList.toggle("over", depth > 0);
  };
  window.addEventListener("dragenter", (event) => carriesFiles(event) && mark(1));
  window.addEventListener("dragleave", (event) => carriesFiles(event) && mark(-1));
  window.addEventListener("dragover", (event) => carriesFiles(event) && event.preventDefault());
  window.addEventListener("drop", (event) => {
    if (!carriesFiles(event)) return;
    event.preventDefault(); // the browser would leave the page for the image
    depth = 0;
    mark(0);
    onFiles([...event.dataTransfer.files]);
  });

  document.addEventListener("paste", (event) => {
    const files = [...(event.clipboardData?.files ?? [])];
    if (!files.length) return; // text, which belongs to the field it is pasted into
    event.preventDefault();
    onFiles(files);
  });
}

/**
 * Return a small square picture as a data address, or "" for what the browser cannot show.
 *
 * It needs no object URL, so there is none to be forgotten.
 */
export async function thumbnail(file) {
  let bitmap;
  try {
    bitmap = await createImageBitmap(file);
  } catch {
    return "";
  }
  const canvas = document.createElement("canvas");
  canvas.width = canvas.height = THUMB_PIXELS;
  const context = canvas.getContext("2d");
  context.fillStyle = "#fff"; // behind what is transparent
  context.fillRect(0, 0, THUMB_PIXELS, THUMB_PIXELS);
  context.imageSmoothingQuality = "high";
  const scale = THUMB_PIXELS / Math.min(bitmap.width, bitmap.height);
  const [width, height] = [bitmap.width * scale, bitmap.height * scale];
  const [left, top] = [(THUMB_PIXELS - width) / 2, (THUMB_PIXELS - height) / 2];
  context.drawImage(bitmap, left, top, width, height);
  bitmap.close();
  return canvas.toDataURL("image/jpeg", 0.85);
}
