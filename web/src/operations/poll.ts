/** Asks the server for its state again and again, while someone looks at it. */
import { signal } from "@preact/signals";
import { client, send, serverUrl, unwrap } from "../api/client";
import type { Adaptation } from "../api/contract";
import { remember, type Snapshot } from "./history";
import { parseMetrics } from "./prometheus";

const EVERY_MS = 2000;

export const history = signal<readonly Snapshot[]>([]);
export const running = signal<readonly Adaptation[]>([]);
export const pollError = signal<Error | null>(null);

/** Poll until the returned function is called; not while the tab is in the background. */
export function keepPolling(): () => void {
  let timer: ReturnType<typeof setTimeout> | undefined;
  let stopped = false;
  const poll = async () => {
    if (!document.hidden) {
      await ask().then(() => (pollError.value = null), (error: Error) => (pollError.value = error));
    }
    if (!stopped) timer = setTimeout(poll, EVERY_MS);
  };
  void poll();
  return () => {
    stopped = true;
    clearTimeout(timer);
  };
}

async function ask(): Promise<void> {
  const [text, list] = await Promise.all([scrape(), unwrap(client.GET("/v1/adaptations"))]);
  const snapshot = { time: performance.now() / 1000, metrics: parseMetrics(text) };
  history.value = remember(history.value, snapshot);
  running.value = list.data.filter(({ status }) => status === "queued" || status === "adapting");
}

async function scrape(): Promise<string> {
  const response = await send(new Request(`${serverUrl}/metrics`));
  if (!response.ok) throw new Error(`/metrics: the server answered ${response.status}.`);
  return response.text();
}
