/** What a run is about, how far it is, and what can be done with it. */
import { useState } from "preact/hooks";
import { deleteAdaptation } from "../adaptations/requests";
import { visible } from "../document/visible";
import { seconds } from "../parts/numbers";
import { Problem } from "../parts/problem";
import type { Asked } from "./answers";
import { PhaseBar } from "./phase_bar";
import type { Run } from "./run";
import { ShareMenu } from "./share_menu";
import type { RunState } from "./state";

export function RunHead({ run, asked }: { run: Run; asked: readonly Asked[] }) {
  const [problem, setProblem] = useState<Error | null>(null);
  const state = run.state.value;
  const running = state.result === null && run.problem.value === null;
  return (
    <header class="run-head">
      <h1 dir="auto">{visible(run.query || state.result?.name || "An adaptation")}</h1>
      <p class="status" role="status">
        {statusOf(state)}
      </p>
      <PhaseBar state={state} />
      <div class="actions">
        {running && (
          <button type="button" onClick={() => deleteAdaptation(run.id).catch(setProblem)}>
            Cancel
          </button>
        )}
        <ShareMenu run={run} asked={asked} />
      </div>
      <Problem error={problem} />
    </header>
  );
}

function statusOf(state: RunState): string {
  const left = state.secondsLeft ? `, about ${seconds(state.secondsLeft)} left` : "";
  const { result } = state;
  if (result?.status === "failed") return "It failed.";
  if (result?.status === "cancelled") return "Cancelled.";
  if (result) return endOf(result);
  if (state.status === "starting") return "Connecting…";
  if (state.queuePosition > 0) return `Place ${state.queuePosition} in the queue${left}`;
  if (state.steps.length > 0) return `Step ${state.steps.length} of ${state.maxSteps}${left}`;
  if (state.documentTokens) {
    return `Read ${state.tokensRead} of ${state.documentTokens} tokens${left}`;
  }
  return `Beginning${left}`;
}

function endOf(result: NonNullable<RunState["result"]>): string {
  const { accepted_step: step, steps, kept_base_reason: reason } = result;
  if (!step) return `Ready. The base weights answer: ${(reason ?? "no step").replaceAll("_", " ")}.`;
  const made = steps.length === 1 ? "one step" : `${steps.length} steps`;
  return step === steps.length ? `Ready after ${made}.` : `Ready: step ${step} of ${made} did best.`;
}
