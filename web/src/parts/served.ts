/** Which model the server serves, and whether it is ready. */
import { effect, signal } from "@preact/signals";
import { apiKey, client, unwrap } from "../api/client";

/** The served model's name; null until the server told it. */
export const model = signal<string | null>(null);

const RETRY_MS = 2000;

/** Ask for the model, again while the server still loads it, and after the key changed. */
export function keepModel(): () => void {
  let timer: ReturnType<typeof setTimeout> | undefined;
  const ask = () => {
    unwrap(client.GET("/v1/models")).then(
      ({ data }) => (model.value = data[0]?.id ?? null),
      () => (timer = setTimeout(ask, RETRY_MS)),
    );
  };
  return effect(() => {
    void apiKey.value;
    ask();
    return () => clearTimeout(timer);
  });
}
