// What goes over the WebSocket and what comes back.

const HEADER_BYTES = 16;
export const STAGES = ["queue", "text", "denoise", "decode", "encode"];
/** The parts of a picture's time, in order. */
export const PARTS = ["network", ...STAGES];

/** A binary message: id, seed, the server's microseconds, width and height, then the image file. */
export function parseFrame(buffer) {
  return { id: new DataView(buffer).getUint32(0), file: new Blob([new Uint8Array(buffer, HEADER_BYTES)]) };
}

/** Subprotocols of the socket: browsers cannot set its headers, so a key travels as one of them. */
export function protocols(key) {
  return key ? ["twinshot", `twinshot.key.${base64url(key)}`] : ["twinshot"];
}

/** Headers of a fetch with the key, if there is one. */
export function authorization(key) {
  return key ? { Authorization: `Bearer ${key}` } : {};
}

/** Milliseconds by part. `network` is what of the round trip no stage accounts for: the way, and handing over. */
export function split(roundTripMs, stages = {}) {
  const known = STAGES.map((stage) => [stage, stages[stage] ?? 0]);
  const spent = known.reduce((sum, [, ms]) => sum + ms, 0);
  return Object.fromEntries([["network", Math.max(0, roundTripMs - spent)], ...known]);
}

/** How long to wait before try number `attempt` (from 0) to connect again: at once, then ever longer. */
export function backoff(attempt, random = Math.random) {
  if (attempt === 0) return 0;
  return Math.min(4000, 250 * 2 ** (attempt - 1)) * (0.75 + random() / 2);
}

function base64url(text) {
  const bytes = String.fromCharCode(...new TextEncoder().encode(text));
  return btoa(bytes).replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "");
}
