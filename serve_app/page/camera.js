// The camera: offered where the browser gives it, and the reason shown where it does not.

import { find, say } from "./dom.js";

/** Offer the camera; `onFile(file)` hears of each picture taken. */
export function offerCamera(onFile) {
  const reason = whyNot();
  find("open-camera").disabled = reason !== "";
  say(find("camera-note"), reason);
  if (reason) return;

  const dialog = find("camera-dialog");
  const video = find("video");
  let count = 0;
  find("open-camera").addEventListener("click", () => open(dialog, video));
  find("close-camera").addEventListener("click", () => dialog.close());
  dialog.addEventListener("close", () => stop(video));
  find("capture").addEventListener("click", async () => {
    count += 1;
    onFile(await capture(video, `camera-${count}.jpg`));
    find("camera-status").textContent = `Picture ${count} was taken.`;
  });
}

function whyNot() {
  if (!window.isSecureContext) return "The camera needs https, or this machine itself (localhost).";
  if (!navigator.mediaDevices?.getUserMedia) return "This browser gives pages no camera.";
  return "";
}

async function open(dialog, video) {
  const status = find("camera-status");
  find("capture").disabled = true;
  status.textContent = "Waiting for the camera…";
  dialog.showModal();
  try {
    const wanted = { video: { facingMode: "environment", width: { ideal: 1920 } }, audio: false };
    const stream = await navigator.mediaDevices.getUserMedia(wanted);
    video.srcObject = stream;
    if (!dialog.open) return stop(video); // closed while the user was being asked
    await video.play();
    status.textContent = "";
    find("capture").disabled = false;
    find("capture").focus();
  } catch (error) {
    if (dialog.open) status.textContent = `The camera cannot be used: ${error.message}`;
  }
}

function stop(video) {
  for (const track of video.srcObject?.getTracks() ?? []) track.stop();
  video.srcObject = null;
  find("camera-status").textContent = "";
}

async function capture(video, name) {
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [video.videoWidth, video.videoHeight];
  canvas.getContext("2d").drawImage(video, 0, 0);
  const blob = await new Promise((resolve) => canvas.toBlob(resolve, "image/jpeg", 0.92));
  return new File([blob], name, { type: "image/jpeg" });
}
