import { expect, test } from "vitest";
import { CodePoints } from "../src/document/code_points";
import { blocksOf, segmentsOf, type Mark } from "../src/document/segments";

const NO_BINS = { starts: [], ends: [] };

/** Return the text of each segment, with its bin and the kinds of its marks. */
function cut(text: string, bins = NO_BINS as { starts: number[]; ends: number[] }, marks: Mark[] = []) {
  return segmentsOf(new CodePoints(text), bins, marks).map(({ text: part, bin, kinds }) => [
    part,
    bin,
    [...kinds].join(" "),
  ]);
}

test("a document without a trace is one segment", () => {
  expect(cut("a document")).toEqual([["a document", -1, ""]]);
  expect(cut("")).toEqual([]);
});

test("segments are cut where bins begin and end, and between bins nothing was read", () => {
  const bins = { starts: [0, 3, 8], ends: [3, 6, 10] };
  expect(cut("abcdefghij", bins)).toEqual([
    ["abc", 0, ""],
    ["def", 1, ""],
    ["gh", -1, ""],
    ["ij", 2, ""],
  ]);
});

test("marks cut bins, overlap each other and end where they end", () => {
  const marks: Mark[] = [
    { kind: "evidence", start: 1, end: 5 },
    { kind: "quote", start: 3, end: 4 },
  ];
  expect(cut("abcdef", { starts: [0], ends: [6] }, marks)).toEqual([
    ["a", 0, ""],
    ["bc", 0, "evidence"],
    ["d", 0, "evidence quote"],
    ["e", 0, "evidence"],
    ["f", 0, ""],
  ]);
});

test("a numbered mark stands before the segment where it begins", () => {
  const marks: Mark[] = [{ kind: "position", start: 2, end: 2, number: 7 }];
  const segments = segmentsOf(new CodePoints("abcd"), NO_BINS, marks);
  expect(segments.map(({ begins }) => begins.map(({ number }) => number))).toEqual([[], [7]]);
  expect(segments.map(({ isTarget }) => isTarget)).toEqual([false, true]);
});

test("places are code points, not UTF-16 units", () => {
  expect(cut("😀b😀d", { starts: [0, 2], ends: [2, 4] })).toEqual([
    ["😀b", 0, ""],
    ["😀d", 1, ""],
  ]);
});

test("marks beyond the text cut nothing", () => {
  expect(cut("ab", NO_BINS, [{ kind: "quote", start: 1, end: 99 }])).toEqual([
    ["a", -1, ""],
    ["b", -1, "quote"],
  ]);
});

test("blocks end with a line, and together they are the document", () => {
  const text = `${"a line of some words\n".repeat(200)}the end`;
  const bins = { starts: [...Array(600).keys()].map((n) => 7 * n), ends: [...Array(600).keys()].map((n) => 7 * n + 7) };
  const blocks = blocksOf(segmentsOf(new CodePoints(text), bins, []));
  const texts = blocks.map((block) => block.map((segment) => segment.text).join(""));
  expect(texts.join("")).toBe(text);
  expect(texts.length).toBeGreaterThan(5);
  for (const part of texts.slice(0, -1)) expect(part.endsWith("\n")).toBe(true);
});

test("a long line is one block", () => {
  expect(blocksOf(segmentsOf(new CodePoints("x".repeat(10_000)), NO_BINS, []))).toHaveLength(1);
});
