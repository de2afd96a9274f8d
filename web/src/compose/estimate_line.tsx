/** What the run would cost, in a sentence. */
import { seconds } from "../parts/numbers";
import { Problem } from "../parts/problem";
import { estimate, estimateError } from "./estimate";

export function EstimateLine() {
  const told = estimate.value;
  if (estimateError.value) return <Problem error={estimateError.value} />;
  return (
    <p class="note" aria-live="polite">
      {told && sentence(told)}
    </p>
  );
}

function sentence(told: NonNullable<typeof estimate.value>): string {
  if (told.adaptation) return "This adaptation exists already; it opens at once.";
  if (told.refusal) return told.refusal.message;
  const { read_seconds: read, adapt_seconds: adapt, total_seconds: total } = told.estimate;
  const tokens = told.document_tokens?.toLocaleString("en") ?? "?";
  const parts = `${tokens} tokens: ${seconds(read)} to read, ${seconds(adapt)} to adapt`;
  const wait = told.queue_position > 1 ? `, behind ${told.queue_position - 1} others` : "";
  return `About ${seconds(total)} (${parts}${wait}).`;
}
