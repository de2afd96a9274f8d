/** Values of bins as levels of colour. */
import { quantileSorted } from "d3-array";
import type { DocumentTrace } from "../api/contract";

export type Measure = "entropy" | "attention";
export type Stage = "before" | "after" | "change";

export const LEVELS = 9;

type Values = readonly (number | null)[];

export interface Heat {
  /** The level of each bin: 0 to 9, in a change -9 to 9; null where nothing was measured. */
  readonly levels: readonly (number | null)[];
  readonly values: Values;
  /** The value of the highest level. */
  readonly top: number;
}

/** The values of a measure; null where the run has none. */
export function valuesOf(trace: DocumentTrace | null, measure: Measure): Values | null {
  return trace === null ? null : trace[measure];
}

/** Return what is to be shown; null where the run does not have it. */
export function heatOf(
  before: DocumentTrace | null,
  after: DocumentTrace | null,
  measure: Measure,
  stage: Stage,
): Heat | null {
  const first = valuesOf(before, measure);
  const second = valuesOf(after, measure);
  if (stage === "change") return first && second ? changes(first, second) : null;
  const values = stage === "before" ? first : second;
  if (values === null) return null;
  // One scale for both stages, so that their colours can be compared.
  const top = highest([...(first ?? []), ...(second ?? [])]);
  // Attention lies on few tokens: the square root lets the others be seen.
  const share = (value: number) => (measure === "attention" ? Math.sqrt(value / top) : value / top);
  return { values, top, levels: values.map((value) => levelOf(value, share)) };
}

/**
 * The means of two stages over the bins that were measured in both, so that they can be compared;
 * that of the first alone where there is no second; null where nothing was measured.
 */
export function means(first: Values, second: Values | null): readonly [number | null, number | null] {
  const both = (_: unknown, bin: number) => first[bin] != null && (!second || second[bin] != null);
  return [mean(first.filter(both)), second && mean(second.filter(both))];
}

function mean(values: Values): number | null {
  if (values.length === 0) return null;
  return values.reduce<number>((sum, value) => sum + (value ?? 0), 0) / values.length;
}

function changes(first: Values, second: Values): Heat {
  const values = first.map((value, bin) => {
    const other = second[bin] ?? null;
    return value === null || other === null ? null : other - value;
  });
  const top = highest(values.map((value) => (value === null ? null : Math.abs(value))));
  const share = (value: number) => Math.sign(value) * Math.sqrt(Math.abs(value) / top);
  return { values, top, levels: values.map((value) => levelOf(value, share)) };
}

/** Return the value that almost all lie below, so that single ones do not take the whole scale. */
function highest(values: Values): number {
  const known = values.filter((value) => value !== null).sort((a, b) => a - b);
  return quantileSorted(known, 0.995) || known.at(-1) || 1;
}

function levelOf(value: number | null, share: (value: number) => number): number | null {
  if (value === null) return null;
  return Math.max(-LEVELS, Math.min(LEVELS, Math.round(LEVELS * share(value))));
}
