/** The change of the fast weights after the step that is looked at. */
import { max } from "d3-array";
import type { Signal } from "@preact/signals";
import type { Step } from "../api/contract";
import { changeOf, LayerBars } from "../plots/layer_bars";

export function Weights({ steps, step }: { steps: readonly Step[]; step: Signal<number | null> }) {
  const at = step.value ?? steps.length;
  const weights = steps[at - 1]?.trace?.weights ?? [];
  if (weights.length === 0) return null;
  const all = steps.flatMap(({ trace }) => trace?.weights ?? []);
  return <LayerBars weights={weights} top={max(all, changeOf) ?? 1} step={at} />;
}
