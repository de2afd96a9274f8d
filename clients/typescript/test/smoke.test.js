// Against a running server, whose address is in REFINE_URL.
import assert from "node:assert/strict";
import { test } from "node:test";
import {
  answer,
  createRefineClient,
  estimate,
  followAdaptation,
  RefineError,
  streamAnswer,
} from "../dist/index.js";

const client = createRefineClient({ baseUrl: process.env.REFINE_URL ?? "http://127.0.0.1:8000" });
const question = {
  document: "The harbour code is Amber Falcon. ".repeat(20),
  query: "What is the harbour code?",
  adapt: { optimizer: { steps: 2 } },
  max_tokens: 4,
};

test("the served model is listed", async () => {
  const { data, error } = await client.GET("/v1/models");
  assert.equal(error, undefined);
  assert.equal(data.data.length >= 1, true);
});

test("a stream reports each step and ends with the answer", async () => {
  const events = [];
  for await (const event of streamAnswer(client, question)) events.push(event);
  assert.deepEqual(
    events.filter(({ event }) => event === "adaptation.step").map(({ data }) => data.step),
    [1, 2],
  );
  assert.equal(events[0].event, "request.accepted");
  assert.equal(events[0].data.estimate.total_seconds > 0, true);
  const last = events.at(-1);
  assert.equal(last.event, "answer.completed");
  const pieces = events.filter(({ event }) => event === "answer.delta");
  assert.equal(pieces.map(({ data }) => data.text).join(""), last.data.answer);
  assert.equal(last.data.adaptation_report.steps.length, 2);
});

test("an answer is the stream's last event", async () => {
  const last = await answer(client, { ...question, adapt: { objective: "none" } });
  assert.equal(last.answered_by, "base");
  assert.equal(typeof last.answer, "string");
});

test("an error names the field at fault", async () => {
  await assert.rejects(
    answer(client, { ...question, adapt: { optimizer: { steps: -1 } } }),
    (error) =>
      error instanceof RefineError && error.status === 422 && error.param === "adapt.optimizer.steps",
  );
});

test("a stream that is left early is cancelled", async () => {
  for await (const { event } of streamAnswer(client, { ...question, adapt: { optimizer: { steps: 200 } } })) {
    if (event === "adaptation.step") break;
    assert.notEqual(event, "answer.completed");
  }
});

test("an adaptation is followed from its beginning, also after its end", async () => {
  const { document, adapt } = question;
  const { data } = await client.POST("/v1/adaptations", { body: { document, adapt } });
  for (let time = 0; time < 2; time += 1) {
    const names = [];
    for await (const { event } of followAdaptation(client, data.id)) names.push(event);
    assert.equal(names[0], "request.accepted");
    assert.equal(names.filter((name) => name === "adaptation.step").length, 2);
    assert.equal(names.at(-1), "adaptation.ready");
  }
});

test("a question is estimated without its work", async () => {
  const { estimate: cost, admitted } = await estimate(client, question);
  assert.equal(admitted, true);
  assert.equal(cost.adapt_seconds > 0, true);
});
