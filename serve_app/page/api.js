// Calls to the server this page came from, and to nobody else. A busy server is asked again after
// the time it names; a call that needs a key asks for one and is then repeated.

import { askForKey, keyFor } from "./keys.js";

const MAX_RETRIES = 4;
const LONGEST_WAIT_SECONDS = 30;
const PATIENCE_SECONDS = 120;

/** What the server, or the way to it, said instead of an answer. */
export class ApiError extends Error {
  constructor(message, status, code, body = {}) {
    super(message);
    this.status = status; // 0 where no answer came
    this.code = code;
    this.body = body;
  }
}

/**
 * Make one call and return `{ body, milliseconds }`, the time being that of the last try alone.
 *
 * `scope` says which key it needs, `retries` whether a busy server is asked again, `onWait(seconds,
 * number)` hears of it. `isFile` says that the answer is no JSON: the body is a Blob.
 */
export async function call(method, path, options = {}) {
  const { scope = "infer", retries = false, onWait = () => {} } = options;
  for (let tried = 0; ; ) {
    const key = keyFor(scope);
    const started = performance.now();
    const response = await send(method, path, options, key);
    if (response.ok) {
      const body = options.isFile ? await readFile(response) : await read(response);
      return { body, milliseconds: performance.now() - started };
    }
    const error = await errorOf(response);
    if (error.code === "unauthenticated" || error.code === "forbidden") {
      // Another call may have been given a key while this one was under way.
      const isGiven = key !== keyFor(scope) || (await askForKey(scope, key && error.message));
      if (!isGiven) throw new ApiError(`No key was given. ${error.message}`, error.status, "no_key");
    } else if (retries && (error.status === 429 || error.status === 503) && tried < MAX_RETRIES) {
      tried += 1;
      const seconds = waitSeconds(response, tried);
      onWait(seconds, tried);
      await pause(seconds, options.signal);
    } else {
      throw error;
    }
  }
}

async function send(method, path, { body, headers = {}, signal }, key) {
  const timeout = AbortSignal.timeout(PATIENCE_SECONDS * 1000);
  const isData = body instanceof Blob;
  const type = isData ? "application/octet-stream" : "application/json";
  try {
    return await fetch(new URL(path, document.baseURI), {
      method,
      headers: {
        ...headers,
        ...(body === undefined ? {} : { "Content-Type": type }),
        ...(key ? { Authorization: `Bearer ${key}` } : {}),
      },
      body: isData || body === undefined ? body : JSON.stringify(body),
      signal: signal ? AbortSignal.any([signal, timeout]) : timeout,
      credentials: "same-origin",
      cache: "no-store",
    });
  } catch (error) {
    if (signal?.aborted) throw error;
    const why = timeout.aborted
      ? `The server has not answered for ${PATIENCE_SECONDS} s.`
      : "The server cannot be reached, or the file cannot be read.";
    throw new ApiError(why, 0, "no_answer");
  }
}

async function read(response) {
  try {
    return await response.json();
  } catch {
    throw new ApiError("The answer broke off, or is no JSON.", response.status, "no_answer");
  }
}

async function readFile(response) {
  try {
    return await response.blob();
  } catch {
    throw new ApiError("The file broke off.", response.status, "no_answer");
  }
}

async function errorOf(response) {
  const body = await response.json().catch(() => ({})); // a proxy in between may answer in HTML
  const message = body.error ?? `The server answered ${response.status} ${response.statusText}.`;
  return new ApiError(message, response.status, body.code ?? "", body);
}

function waitSeconds(response, tried) {
  const told = Number.parseFloat(response.headers.get("Retry-After") ?? "");
  return Math.min(Number.isFinite(told) ? told : 2 ** (tried - 1), LONGEST_WAIT_SECONDS);
}

function pause(seconds, signal) {
  return new Promise((resolve, reject) => {
    const stop = () => {
      clearTimeout(timer);
      reject(signal.reason);
    };
    const timer = setTimeout(() => {
      signal?.removeEventListener("abort", stop);
      resolve();
    }, seconds * 1000);
    signal?.addEventListener("abort", stop, { once: true });
  });
}
