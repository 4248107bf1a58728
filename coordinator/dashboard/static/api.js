// The JSON routes. What was fetched once is asked for again by its ETag, so a refresh that changes nothing costs little.

const known = new Map(); // address -> {etag, value}
const MAX_KNOWN = 200;

/** A refusal of the server, with its own sentence. */
export class ApiError extends Error {
  constructor(status, sentence) {
    super(sentence);
    this.status = status;
  }
}

/**
 * The value of a route.
 * @param {string} address such as "/api/overview"
 * @returns {Promise<object>} the very same object as before where nothing has changed
 */
export async function get(address, { signal } = {}) {
  const before = known.get(address);
  const headers = { accept: "application/json" };
  if (before) headers["if-none-match"] = before.etag;
  let response;
  try {
    // no-store: the page keeps its own copy, and a 304 has to arrive here.
    response = await fetch(address, { headers, signal, cache: "no-store", credentials: "same-origin" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(0, "The coordinator does not answer. It may have ended; this page tries again by itself.");
  }
  if (response.status === 304 && before) return before.value;
  if (response.status === 401) signIn();
  if (!response.ok) throw new ApiError(response.status, await sentenceOf(response));
  const value = await response.json();
  const etag = response.headers.get("etag");
  if (etag) remember(address, { etag, value });
  return value;
}

function remember(address, entry) {
  known.delete(address);
  known.set(address, entry);
  if (known.size > MAX_KNOWN) known.delete(known.keys().next().value);
}

async function sentenceOf(response) {
  try {
    const { detail } = await response.json();
    if (typeof detail === "string") return detail;
    if (Array.isArray(detail)) return detail.map((one) => one.msg).join("; ");
  } catch {
    // not JSON: a proxy's page, perhaps
  }
  return `The server answered ${response.status} ${response.statusText}.`;
}

/** To the page that asks for a token, and back to where we were. */
function signIn() {
  location.assign(`/login?next=${encodeURIComponent(location.pathname + location.search)}`);
}
