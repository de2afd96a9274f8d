/** What was measured at the part of the document that is pointed at. */
import type { Signal } from "@preact/signals";
import type { DocumentTrace } from "../api/contract";
import { measured, percent } from "../parts/numbers";
import type { CodePoints } from "./code_points";
import { visible } from "./visible";

export interface ReadoutProps {
  readonly bin: Signal<number | null>;
  readonly text: CodePoints;
  readonly before: DocumentTrace | null;
  readonly after: DocumentTrace | null;
}

export function Readout({ bin, text, before, after }: ReadoutProps) {
  const at = bin.value;
  if (before === null) return null;
  if (at === null) return <p class="readout note">Point at a word to read its values.</p>;
  const quoted = visible(text.slice(before.starts[at]!, before.ends[at]!)).replaceAll("\n", "⏎");
  const entropy = pair(before.entropy[at], after?.entropy[at], measured);
  const attention = pair(before.attention?.[at], after?.attention?.[at], percent);
  return (
    <p class="readout note">
      <q>
        <bdi>{quoted}</bdi>
      </q>
      {entropy && <> entropy {entropy} nats</>}
      {attention && <> · attention {attention}</>}
    </p>
  );
}

type Value = number | null | undefined;

function pair(first: Value, second: Value, write: (value: number) => string): string | null {
  if (first === null || first === undefined) return null;
  return second === null || second === undefined ? write(first) : `${write(first)} → ${write(second)}`;
}
