import { execFileSync } from "node:child_process";
import { expect, test } from "vitest";
import { asCurl, asPython, python, shellQuoted, type Done } from "../src/run/commands";

const done: Done = {
  server: "http://127.0.0.1:8000",
  document: "file-1",
  adaptation: { preset: null, optimizer: { steps: 2 }, trace: true } as Done["adaptation"],
  query: "Who's \"there\"? $HOME `id`",
  asked: [
    { adaptation: "adapt-1", query: "second", compare_base: true },
    { adaptation: "adapt-1", query: "Who's \"there\"? $HOME `id`", compare_base: true },
  ],
};

test("a shell reads a quoted text as it was", () => {
  for (const text of ["", "a b", "it's", "$HOME `id` \\ \"x\"\n!", "'''"]) {
    const told = execFileSync("sh", ["-c", `printf %s ${shellQuoted(text)}`]).toString();
    expect(told).toBe(text);
  }
});

test("Python reads a value as it was", () => {
  const value = { a: [1, -0.5, 1e-6, true, false, null], "b'\"\n": "é 😀 \u2028 \\ \u0000" };
  const code = `import json; print(json.dumps(${python(value)}))`;
  const told = execFileSync("python3", ["-c", code.replaceAll("\0", "")]).toString();
  expect(JSON.parse(told)).toEqual(value);
});

test("the commands adapt, follow and ask in the order in which it was done", () => {
  // A curl that prints its arguments, and a jq that prints an id, stand in for both.
  const script = `curl() { printf '%s\\n' "$@"; }; jq() { cat > /dev/null; echo adapt-2; }\n`;
  const told = execFileSync("sh", ["-c", script + asCurl(done)]).toString();
  const bodies = told.split("\n").filter((line) => line.startsWith("{"));
  expect(told).toContain("http://127.0.0.1:8000/v1/adaptations/adapt-2/events");
  expect(bodies.map((line) => JSON.parse(line))).toEqual([
    { adaptation: "adapt-2", query: done.query, compare_base: true },
    { adaptation: "adapt-2", query: "second", compare_base: true },
  ]);
});

test("the program names the document, the settings and the questions", () => {
  expect(asPython({ ...done, query: "a", asked: [{ adaptation: "x", query: "a", max_tokens: 8 }] }))
    .toBe(`from refine_server.clients import RefineClient

with RefineClient("http://127.0.0.1:8000") as client:
    made = client.adapt({"file_id": "file-1"}, queries=["a"], adapt={"optimizer": {"steps": 2}, "trace": True})
    adaptation = client.wait_for_adaptation(made.id)
    print(client.answer("a", adaptation=adaptation.id, max_tokens=8))
`);
});
