/** What the run would cost, asked of the server as the person writes. */
import { effect, signal } from "@preact/signals";
import { client, unwrap } from "../api/client";
import type { Estimate } from "../api/contract";
import { body } from "./draft";

const PAUSE_MS = 500;

/** The estimate for the request as it stands; null while it is unknown. */
export const estimate = signal<Estimate | null>(null);
/** Why the server would not take the request as it stands. */
export const estimateError = signal<Error | null>(null);

/** Keep the estimate up to date until the returned function is called. */
export function keepEstimating(): () => void {
  return effect(() => {
    const asked = body.value;
    estimate.value = null;
    estimateError.value = null;
    if (asked === null) return;
    const aborter = new AbortController();
    const timer = setTimeout(() => {
      const { signal: aborted } = aborter;
      unwrap(client.POST("/v1/estimate", { body: asked, signal: aborted })).then(
        (told) => (estimate.value = told),
        (error: Error) => {
          if (!aborted.aborted) estimateError.value = error;
        },
      );
    }, PAUSE_MS);
    return () => {
      clearTimeout(timer);
      aborter.abort();
    };
  });
}
