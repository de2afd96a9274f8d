/** The document of a run. */
import type { Signal } from "@preact/signals";
import type { Range } from "../api/contract";
import type { Asked } from "../run/answers";
import type { Run } from "../run/run";
import { visible } from "./visible";

export interface DocumentPaneProps {
  readonly run: Run;
  readonly asked: readonly Asked[];
  readonly focus: Signal<Range | null>;
}

export function DocumentPane({ run }: DocumentPaneProps) {
  const { value } = run.document;
  if (value === null) return <p class="note">The link to this run has no document.</p>;
  return (
    <div class="paper" tabIndex={0} dir="auto">
      {visible(value.text)}
    </div>
  );
}
