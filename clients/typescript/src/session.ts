/**
 * The session of a request: requests of one session go to one of several replicas, which has their
 * document in memory.
 */

export const SESSION_HEADER = "x-session-id";
const ADAPTATION = /^adapt-([0-9a-f]{8})[0-9a-f]*$/;
const ADAPTATION_PATH = /\/v1\/adaptations\/adapt-([0-9a-f]{8})[0-9a-f]*(?:\/|$)/;

/** Return the session of a request; null where it has no text of a document and no adaptation. */
export async function sessionOf(request: Request): Promise<string | null> {
  const given = request.headers.get(SESSION_HEADER);
  if (given !== null) return given;
  const named = ADAPTATION_PATH.exec(new URL(request.url).pathname);
  if (named) return named[1] ?? null;
  if (!request.headers.get("content-type")?.startsWith("application/json")) return null;
  const { adaptation, document } = JSON.parse(await request.clone().text());
  if (typeof adaptation === "string") return ADAPTATION.exec(adaptation)?.[1] ?? null;
  // Browsers have no hashes on pages without TLS; the servers' ingress then computes the session.
  if (typeof document !== "string" || globalThis.crypto?.subtle === undefined) return null;
  const key = (request.headers.get("authorization") ?? "").replace(/^Bearer /, "");
  const text = new TextEncoder().encode(`${key}\0text\0${document}`);
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", text)).subarray(0, 4);
  return Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("");
}
