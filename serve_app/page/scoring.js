// One image to one outcome, by the call that the picked model answers.

import { ApiError, call } from "./api.js";

const TOP_K = 5;

/**
 * Score an image and return `{ answer, milliseconds }`. Raises `ApiError` in the server's words.
 *
 * `minRevision` asks for the labels that were just published, 0 for those in effect.
 */
export async function score(model, file, { minRevision = 0, signal, onWait }) {
  const options = { body: file, signal, onWait, retries: true };
  if (!model.canClassify) return answerOf(await call("POST", `${model.path}/embed`, options));
  const path = `${model.path}/classify?top_k=${TOP_K}`;
  if (!minRevision) return answerOf(await call("POST", path, options));
  try {
    return answerOf(await call("POST", `${path}&min_revision=${minRevision}`, options));
  } catch (error) {
    // A replica that cannot have these labels now still scores; the answer says with which.
    if (!(error instanceof ApiError) || error.code !== "label_revision") throw error;
    return answerOf(await call("POST", path, options));
  }
}

const answerOf = ({ body, milliseconds }) => ({ answer: body, milliseconds });
