/** An error, as the server words it, with the field at fault. */
import { RefineError } from "refine-server-client";

export function Problem({ error }: { error: Error | null }) {
  if (error === null) return null;
  const param = error instanceof RefineError ? error.param : null;
  return (
    <p role="alert" class="problem">
      {param !== null && !error.message.startsWith(param) && <code>{param}</code>} {error.message}
    </p>
  );
}
