import { expect, test } from "vitest";
import type { AdaptationEvent } from "../src/api/contract";
import { advance, phasesUntil, startOf, type RunState } from "../src/run/state";

/** Return the state after events, each with the time when it came. */
function after(...events: [time: number, event: string, data: object][]): RunState {
  return events.reduce(
    (state, [time, event, data]) => advance(state, { event, data } as unknown as AdaptationEvent, time),
    startOf(0),
  );
}

const accepted = (time: number, position = 1): [number, string, object] => [
  time,
  "request.accepted",
  { queue_position: position, seconds_left: 9 },
];
const step = (time: number, number: number): [number, string, object] => [
  time,
  "adaptation.step",
  { step: number, steps: 4, seconds: 2, seconds_left: 1 },
];

test("each phase has the seconds between the events that begin and end it", () => {
  const state = after(
    accepted(0),
    [3, "document.reading", { tokens_read: 0, document_tokens: 100 }],
    [5, "adaptation.started", { steps: 4 }],
    step(7, 1),
    [9, "request.progress", { phase: "judging" }],
    [10, "adaptation.ready", { status: "ready" }],
  );
  expect(state.phases).toEqual([
    { name: "queued", seconds: 3 },
    { name: "reading", seconds: 2 },
    { name: "adapting", seconds: 4 },
    { name: "judging", seconds: 1 },
  ]);
});

test("the present phase grows until the run has ended", () => {
  const running = after(accepted(0));
  expect(phasesUntil(running, 4)).toEqual([{ name: "queued", seconds: 4 }]);
  const ended = after(accepted(0), [1, "adaptation.cancelled", { status: "cancelled" }]);
  expect(phasesUntil(ended, 4)).toEqual([{ name: "queued", seconds: 1 }]);
});

test("steps of a run that was joined late keep the seconds that the server measured", () => {
  const state = after(accepted(50), step(50, 1), step(50, 2), [50, "adaptation.ready", {}]);
  expect(state.phases.at(-1)).toEqual({ name: "adapting", seconds: 4 });
});

test("the state tells the place in the queue, what was read, and how many steps were made", () => {
  const queued = after(accepted(0, 3), [1, "request.queued", { queue_position: 2 }]);
  expect(queued).toMatchObject({ status: "queued", queuePosition: 2 });
  const reading = [2, "document.reading", { tokens_read: 40, document_tokens: 100 }] as const;
  const adapting = after(accepted(0), [...reading], step(3, 1), step(4, 2));
  expect(adapting).toMatchObject({ status: "adapting", tokensRead: 40, documentTokens: 100 });
  expect(adapting.steps.map(({ step: number }) => number)).toEqual([1, 2]);
  expect(adapting.maxSteps).toBe(4);
});

test("traces of the document are kept by their stage", () => {
  const state = after(accepted(0), [1, "document.trace", { stage: "before", step: 0 }]);
  expect(state.before).toMatchObject({ step: 0 });
  expect(state.after).toBeNull();
});
