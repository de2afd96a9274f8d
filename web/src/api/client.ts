/** The client of the server that serves the page. */
import { signal } from "@preact/signals";
import { createRefineClient, RefineError } from "refine-server-client";

/** Where the server is: the page's own address, which a proxy may have put under a path. */
export const serverUrl = new URL(".", location.href.replace(/[?#].*/, "")).href.replace(/\/$/, "");

const KEY = "refine.key";

/** The API key; it is kept for this tab alone, until it is closed. */
export const apiKey = signal(sessionStorage.getItem(KEY) ?? "");

/** Whether the server refused the key, or a request without one. */
export const keyRefused = signal(false);

export function setApiKey(key: string): void {
  if (key) sessionStorage.setItem(KEY, key);
  else sessionStorage.removeItem(KEY);
  keyRefused.value = false;
  apiKey.value = key;
}

/** Send a request with the key. */
export async function send(request: Request): Promise<Response> {
  if (apiKey.value) request.headers.set("authorization", `Bearer ${apiKey.value}`);
  const response = await fetch(request);
  if (response.status === 401) keyRefused.value = true;
  return response;
}

export const client = createRefineClient({ baseUrl: serverUrl, fetch: send });

type Outcome<T> = { data?: T; error?: unknown; response: Response };

/**
 * Return the data of a response.
 *
 * @throws RefineError when the server refused.
 */
export async function unwrap<T>(outcome: Promise<Outcome<T>>): Promise<T> {
  const { data, error, response } = await outcome;
  if (error !== undefined || data === undefined) throw refusal(error, response.status);
  return data;
}

function refusal(error: unknown, status: number): Error {
  const detail = (error as { error?: ConstructorParameters<typeof RefineError>[0] })?.error;
  return detail ? new RefineError(detail, status) : new Error(`The server answered ${status}.`);
}
