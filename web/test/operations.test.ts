import { expect, test } from "vitest";
import { meanOf, rates, remember, shareOf, type Snapshot } from "../src/operations/history";
import { parseMetrics, total } from "../src/operations/prometheus";

const TEXT = `# HELP refine_queue_depth Requests in the queue.
# TYPE refine_queue_depth gauge
refine_queue_depth 3.0
refine_requests_total{endpoint="/v1/answers",status="200"} 5.0
refine_requests_total{endpoint="/v1/answers",status="429"} 2 1395066363000
odd{text="a \\"b\\", c\\nd \\\\ }"} +Inf
not a sample
refine_queue_seconds_sum 6
refine_queue_seconds_count 4
`;

test("metrics are read with their labels and values", () => {
  const metrics = parseMetrics(TEXT);
  expect([...metrics.keys()].filter((name) => name.startsWith("refine_queue"))).toHaveLength(3);
  expect(metrics.get("odd")).toEqual([{ labels: { text: 'a "b", c\nd \\ }' }, value: Infinity }]);
});

test("a total sums the samples that have the labels", () => {
  const metrics = parseMetrics(TEXT);
  expect(total(metrics, "refine_requests_total")).toBe(7);
  expect(total(metrics, "refine_requests_total", { status: "429" })).toBe(2);
  expect(total(metrics, "refine_requests_total", { status: "500" })).toBeNull();
  expect(total(metrics, "missing")).toBeNull();
  expect(meanOf(metrics, "refine_queue_seconds")).toBe(1.5);
  expect(meanOf(metrics, "missing")).toBeNull();
});

const at = (time: number, text: string): Snapshot => ({ time, metrics: parseMetrics(text) });

test("a rate is what a counter rose by in a second; a restart of the server counts as none", () => {
  const history = [at(0, "c 10"), at(2, "c 16"), at(4, "c 1"), at(6, "other 1")];
  expect(rates(history, "c")).toEqual([3, 0, null]);
});

test("snapshots are kept for five minutes", () => {
  let history: readonly Snapshot[] = [];
  for (let time = 0; time <= 1000; time += 100) history = remember(history, at(time, ""));
  expect(history.map(({ time }) => time)).toEqual([700, 800, 900, 1000]);
});

test("a share is that of two counters", () => {
  expect(shareOf(parseMetrics("hits 3\nmisses 1"), "hits", "misses")).toBe(0.75);
  expect(shareOf(parseMetrics("hits 0\nmisses 0"), "hits", "misses")).toBeNull();
});
