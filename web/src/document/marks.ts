/** What is marked in a document: evidence, the answers' words, rollout positions, pages. */
import type {
  Adaptation,
  Answer,
  DocumentResource,
  DocumentTrace,
  Range,
  TracedPosition,
} from "../api/contract";
import type { Mark, MarkKind } from "./segments";

export interface Marked {
  readonly document: DocumentResource | null;
  readonly before: DocumentTrace | null;
  readonly result: Adaptation | null;
  readonly answer: Answer | null;
  /** The positions of the step that is looked at. */
  readonly positions: readonly TracedPosition[] | undefined;
}

export function marksOf({ document, before, result, answer, positions = [] }: Marked): Mark[] {
  const evidence = answer?.citations ?? result?.citations ?? before?.evidence ?? [];
  const quotes = [...(answer?.quotes ?? []), ...(answer?.base_quotes ?? [])];
  return [
    ...(document?.pages ?? []).map(({ number, start }) => pointed("page", start, number)),
    ...evidence.map((range) => over("evidence", range)),
    ...quotes.map((range) => over("quote", range)),
    ...positions.flatMap(({ start }, index) =>
      start === null ? [] : [pointed("position", start, index + 1)],
    ),
  ];
}

const over = (kind: MarkKind, { start, end }: Range): Mark => ({ kind, start, end });

const pointed = (kind: MarkKind, start: number, number: number): Mark => ({
  kind,
  start,
  end: start,
  number,
});
