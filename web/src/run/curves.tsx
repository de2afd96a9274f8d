/** Loss, rewards and norms of the steps so far. */
import { useMemo } from "preact/hooks";
import { signal } from "@preact/signals";
import type { HeldOut, Step } from "../api/contract";
import { LineChart, type Point } from "../plots/line_chart";

/** The curves: title, what it is, and its value in a step. */
const CURVES: readonly (readonly [string, string, (step: Step) => number | null | undefined])[] = [
  ["Loss", "all terms, weighted", (step) => step.loss],
  ["Next-token loss", "nats per token", (step) => step.ntp_loss],
  ["Reward", "mean of the rollouts", (step) => step.reward_mean],
  ["KL", "from the base model, nats", (step) => step.kl],
  ["Gradient norm", "before clipping", (step) => step.grad_norm],
];

export interface CurvesProps {
  readonly steps: readonly Step[];
  readonly maxSteps: number | null;
  readonly heldOut: readonly HeldOut[];
}

export function Curves({ steps, maxSteps, heldOut }: CurvesProps) {
  const pointedAt = useMemo(() => signal<number | null>(null), []);
  const last = Math.max(steps.length, maxSteps ?? 1);
  return (
    <div class="plots">
      {CURVES.map(([title, about, valueOf]) => (
        <LineChart
          key={title}
          title={title}
          about={about}
          points={steps.map((step): Point => ({ step: step.step, value: valueOf(step) ?? null }))}
          firstStep={1}
          lastStep={last}
          pointedAt={pointedAt}
        />
      ))}
      {heldOut.length > 0 && (
        <LineChart
          title="Held-out loss"
          about="after the step, nats per token"
          points={heldOut.map(({ step, loss }) => ({ step, value: loss ?? null }))}
          firstStep={0}
          lastStep={last}
          pointedAt={pointedAt}
        />
      )}
    </div>
  );
}
