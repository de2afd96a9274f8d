import { expect, test } from "vitest";
import type { DocumentTrace } from "../src/api/contract";
import { heatOf, LEVELS, means } from "../src/document/levels";

const trace = (fields: Partial<DocumentTrace>) => fields as DocumentTrace;

test("levels rise with the entropy, on one scale before and after", () => {
  const before = trace({ entropy: [0, 1, 2, 4, null] });
  const after = trace({ entropy: [0, 0.5, 1, 2, null] });
  const first = heatOf(before, after, "entropy", "before")!;
  const second = heatOf(before, after, "entropy", "after")!;
  expect(first.levels).toEqual([0, 2, 5, LEVELS, null]);
  expect(second.levels).toEqual([0, 1, 2, 5, null]);
  expect(second.top).toBe(first.top);
});

test("a change is signed, and unknown where one of both is", () => {
  const before = trace({ entropy: [2, 2, 2, null, 2] });
  const after = trace({ entropy: [2, 4, 0, 1, null] });
  const { levels, values } = heatOf(before, after, "entropy", "change")!;
  expect(levels).toEqual([0, LEVELS, -LEVELS, null, null]);
  expect(values).toEqual([0, 2, -2, null, null]);
});

test("one value far above the others does not take the whole scale", () => {
  const entropy = [...Array(1000).fill(1), 1000];
  const { levels } = heatOf(trace({ entropy }), null, "entropy", "before")!;
  expect(levels[0]).toBe(LEVELS);
  expect(levels.at(-1)).toBe(LEVELS);
});

test("what a run does not have cannot be shown", () => {
  const before = trace({ entropy: [1], attention: null });
  expect(heatOf(null, null, "entropy", "before")).toBeNull();
  expect(heatOf(before, null, "entropy", "after")).toBeNull();
  expect(heatOf(before, null, "entropy", "change")).toBeNull();
  expect(heatOf(before, before, "attention", "before")).toBeNull();
});

test("values that are all zero have the lowest level", () => {
  expect(heatOf(trace({ entropy: [0, 0] }), null, "entropy", "before")!.levels).toEqual([0, 0]);
});

test("means are those of the bins that were measured in both stages", () => {
  expect(means([1, null, 3], null)).toEqual([2, null]);
  expect(means([1, 5, 3, 7], [null, 4, 2, null])).toEqual([4, 3]);
  expect(means([null], [1])).toEqual([null, null]);
});
