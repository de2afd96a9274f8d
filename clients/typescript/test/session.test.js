// The sessions of requests, which are those of the Python client and of the server.
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { sessionOf } from "../dist/session.js";

const CASES = JSON.parse(
  readFileSync(new URL("../../../tests/data/sessions.json", import.meta.url), "utf8"),
);

const post = (request, headers) =>
  new Request("http://127.0.0.1:8000/v1/answers", {
    method: "POST",
    body: JSON.stringify(request),
    headers: { "content-type": "application/json", ...headers },
  });

for (const { key, request, session } of CASES) {
  test(`the session of ${JSON.stringify(request)} with the key "${key}"`, async () => {
    const headers = key ? { authorization: `Bearer ${key}` } : {};
    assert.equal(await sessionOf(post(request, headers)), session);
  });
}

test("the path of an adaptation has its session", async () => {
  const id = `adapt-0123abcd${"ef".repeat(12)}`;
  const url = `http://127.0.0.1:8000/v1/adaptations/${id}`;
  assert.equal(await sessionOf(new Request(`${url}/events`)), "0123abcd");
  assert.equal(await sessionOf(new Request(url, { method: "DELETE" })), "0123abcd");
});

test("a session that the caller has set is kept", async () => {
  assert.equal(await sessionOf(post({ document: "d" }, { "x-session-id": "mine" })), "mine");
});
