/** The phases of a run as parts of a bar, with their seconds. */
import { useEffect, useState } from "preact/hooks";
import { seconds } from "../parts/numbers";
import { phasesUntil, type PhaseName, type RunState } from "./state";

const NAMES: Readonly<Record<PhaseName, string>> = {
  queued: "Queue",
  reading: "Read",
  adapting: "Adapt",
  judging: "Judge",
};

export function PhaseBar({ state }: { state: RunState }) {
  const now = useNow(state.result === null);
  const phases = phasesUntil(state, now);
  const total = phases.reduce((sum, phase) => sum + phase.seconds, 0);
  return (
    <ol class="phases" aria-label="Phases">
      {phases.map((phase, index) => (
        <li
          key={index}
          class={`phase ${phase.name}`}
          style={{ flexGrow: total > 0 ? phase.seconds / total : 1 }}
        >
          <span>{NAMES[phase.name]}</span> <b>{seconds(phase.seconds)}</b>
        </li>
      ))}
    </ol>
  );
}

const TICK_MS = 200;

/** The clock in seconds, while it is needed. */
function useNow(running: boolean): number {
  const [now, setNow] = useState(performance.now() / 1000);
  useEffect(() => {
    if (!running) return;
    const timer = setInterval(() => setNow(performance.now() / 1000), TICK_MS);
    return () => clearInterval(timer);
  }, [running]);
  return now;
}
