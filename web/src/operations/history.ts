/** What the metrics told in the last minutes, as rates and levels. */
import { total, type Metrics } from "./prometheus";

/** The metrics at one time, in seconds. */
export interface Snapshot {
  readonly time: number;
  readonly metrics: Metrics;
}

const KEPT_SECONDS = 300;

/** Add a snapshot and forget those that are too old. */
export function remember(history: readonly Snapshot[], next: Snapshot): readonly Snapshot[] {
  return [...history.filter(({ time }) => next.time - time <= KEPT_SECONDS), next];
}

/** Return a gauge over time. */
export function levels(history: readonly Snapshot[], name: string): (number | null)[] {
  return history.map(({ metrics }) => total(metrics, name));
}

/** Return how fast a counter rose between snapshots, in units a second; a restart counts as 0. */
export function rates(history: readonly Snapshot[], name: string): (number | null)[] {
  return history.slice(1).map(({ time, metrics }, index) => {
    const before = history[index]!;
    const [from, to] = [total(before.metrics, name), total(metrics, name)];
    if (to === null || time <= before.time) return null;
    return Math.max(0, to - (from ?? 0)) / (time - before.time);
  });
}

/** Return a share of two counters since the server started; null before anything was counted. */
export function shareOf(metrics: Metrics, part: string, rest: string): number | null {
  const [some, others] = [total(metrics, part) ?? 0, total(metrics, rest) ?? 0];
  return some + others > 0 ? some / (some + others) : null;
}

/** Return the mean of a histogram since the server started; null while it is empty. */
export function meanOf(metrics: Metrics, name: string): number | null {
  const count = total(metrics, `${name}_count`);
  return count ? (total(metrics, `${name}_sum`) ?? 0) / count : null;
}
