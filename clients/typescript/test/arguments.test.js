// Arguments that cannot be encoded: errors that name the argument, before anything is sent.
import assert from "node:assert/strict";
import { test } from "node:test";
import { answer, createRefineClient, InvalidArgumentError, streamAnswer } from "../dist/index.js";

const sent = [];
const client = createRefineClient({
  baseUrl: "http://127.0.0.1:9",
  fetch: async (request) => {
    sent.push(request);
    return Response.json({ data: [] });
  },
});
const question = { document: "a document", query: "a question" };
const circular = { steps: 1 };
circular.adapt = circular;

const REFUSED = [
  ["query", { query: "a\ud800b" }],
  ["document", { document: new Map() }],
  ["temperature", { temperature: Number.NaN }],
  ["adapt.loss.kl", { adapt: { loss: { kl: -Infinity } } }],
  ["adapt", { adapt: new Set(["seed"]) }],
  ["adapt", { adapt: { "\udc00": 1 } }],
  ["adapt.adapt", { adapt: circular }],
  ["seed", { seed: 1n }],
  ["stop.1", { stop: ["a", "\udc00"] }],
  ["stop.0", { stop: [() => "a"] }],
];

function refuses(param) {
  return (error) => error instanceof InvalidArgumentError && error.param === param;
}

for (const [param, options] of REFUSED) {
  test(`${param} is named when it cannot be encoded`, async () => {
    const body = { ...question, ...options };
    await assert.rejects(answer(client, body), refuses(param));
    await assert.rejects(streamAnswer(client, body).next(), refuses(param));
    await assert.rejects(client.POST("/v1/adaptations", { body }), refuses(param));
    assert.equal(sent.length, 0);
  });
}

for (const id of ["a\ud800", "", ".", ".."]) {
  test(`an adaptation's id is no ${JSON.stringify(id)}`, async () => {
    const params = { path: { adaptation_id: id } };
    const path = "/v1/adaptations/{adaptation_id}";
    await assert.rejects(client.GET(path, { params }), refuses("adaptation_id"));
    await assert.rejects(client.DELETE(path, { params }), refuses("adaptation_id"));
    assert.equal(sent.length, 0);
  });
}

test("what can be encoded is sent as it is", async () => {
  const body = { ...question, query: "é \u2028 😀", adapt: { seed: 2 }, stop: [], model: undefined };
  await client.POST("/v1/adaptations", { body });
  await client.GET("/v1/adaptations/{adaptation_id}", {
    params: { path: { adaptation_id: "adapt/é" } },
  });
  const [posted, got] = sent.splice(0);
  assert.deepEqual(await posted.json(), JSON.parse(JSON.stringify(body)));
  assert.equal(posted.headers.get("content-type"), "application/json");
  assert.equal(new URL(got.url).pathname, "/v1/adaptations/adapt%2F%C3%A9");
});
