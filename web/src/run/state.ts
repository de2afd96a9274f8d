/** What is known of a run, as the events of its stream tell it. */
import type { Adaptation, AdaptationEvent, DocumentTrace, Step } from "../api/contract";

export type PhaseName = "queued" | "reading" | "adapting" | "judging";

/** A phase of a run. */
export interface Phase {
  readonly name: PhaseName;
  readonly seconds: number;
}

export interface RunState {
  readonly status: Adaptation["status"] | "starting";
  /** The phases so far, the present one last. */
  readonly phases: readonly Phase[];
  /** When the present phase began, by the clock of `advance`. */
  readonly since: number;
  readonly queuePosition: number;
  readonly secondsLeft: number | null;
  readonly tokensRead: number;
  readonly documentTokens: number | null;
  /** The most steps that are made; null until it is known. */
  readonly maxSteps: number | null;
  readonly steps: readonly Step[];
  readonly before: DocumentTrace | null;
  readonly after: DocumentTrace | null;
  /** The adaptation as it ended. */
  readonly result: Adaptation | null;
}

/** Return the state before any event. `now` is in seconds. */
export function startOf(now: number): RunState {
  return {
    status: "starting",
    phases: [],
    since: now,
    queuePosition: 0,
    secondsLeft: null,
    tokensRead: 0,
    documentTokens: null,
    maxSteps: null,
    steps: [],
    before: null,
    after: null,
    result: null,
  };
}

/** Return the state after an event, which came at `now`, in seconds. */
export function advance(state: RunState, { event, data }: AdaptationEvent, now: number): RunState {
  switch (event) {
    case "request.accepted":
    case "request.queued": {
      const left = data.seconds_left ?? null;
      const next = { ...state, queuePosition: data.queue_position, secondsLeft: left };
      return { ...enter(next, "queued", now), status: "queued" };
    }
    case "request.progress": {
      const next = { ...state, secondsLeft: data.seconds_left ?? null };
      return enter(next, data.phase === "answering" ? "judging" : data.phase, now);
    }
    case "document.reading": {
      const next = enter(state, "reading", now);
      const { tokens_read: tokensRead, document_tokens: documentTokens } = data;
      const left = data.seconds_left ?? null;
      return { ...next, status: "adapting", tokensRead, documentTokens, secondsLeft: left };
    }
    case "adaptation.started": {
      const next = enter(state, "adapting", now);
      return { ...next, status: "adapting", maxSteps: data.steps, secondsLeft: data.seconds_left };
    }
    case "adaptation.step": {
      const steps = [...state.steps, data];
      const next = enter(state, "adapting", now);
      return { ...next, steps, maxSteps: data.steps, secondsLeft: data.seconds_left };
    }
    case "document.trace":
      return { ...state, [data.stage]: data };
    case "adaptation.ready":
    case "adaptation.failed":
    case "adaptation.cancelled": {
      const ended = enter(state, null, now);
      const documentTokens = data.document_tokens ?? state.documentTokens;
      return { ...ended, status: data.status, result: data, documentTokens, secondsLeft: 0 };
    }
  }
}

/** Return the seconds of each phase until `now`; the present one still grows. */
export function phasesUntil(state: RunState, now: number): readonly Phase[] {
  const present = state.phases.at(-1);
  if (!present || state.result) return state.phases;
  const seconds = present.seconds + Math.max(0, now - state.since);
  return [...state.phases.slice(0, -1), { ...present, seconds }];
}

/** End the present phase and begin another one, unless it is the same; null begins none. */
function enter(state: RunState, name: PhaseName | null, now: number): RunState {
  const phases = [...phasesUntil(state, now)];
  if (name !== null && phases.at(-1)?.name !== name) phases.push({ name, seconds: 0 });
  // Events of a run that was joined late come all at once; the server measured its steps.
  const measured = state.steps.reduce((sum, step) => sum + step.seconds, 0);
  const told = phases.map((phase) =>
    phase.name === "adapting" ? { ...phase, seconds: Math.max(phase.seconds, measured) } : phase,
  );
  return { ...state, phases: told, since: now };
}
