// The parser of event streams, rule by rule as in the HTML standard, however bytes are cut.
import assert from "node:assert/strict";
import { test } from "node:test";
import { parseEvents } from "../dist/sse.js";

const BOM = "\ufeff";
const message = (data) => ({ event: "message", data });

const RULES = [
  ["a leading BOM is dropped", `${BOM}data: x\n\n`, [message("x")]],
  ["only one BOM is dropped", `${BOM}${BOM}data: x\n\ndata: y\n\n`, [message("y")]],
  ["a later BOM is a character", `data: ${BOM}x\n\n`, [message(`${BOM}x`)]],
  ["LF ends a line", "data: x\ndata: y\n\n", [message("x\ny")]],
  ["CR ends a line", "data: x\rdata: y\r\r", [message("x\ny")]],
  ["CRLF ends one line", "data: x\r\ndata: y\r\n\r\n", [message("x\ny")]],
  ["line ends may be mixed", "data: x\r\n\rdata: y\n\r\n", [message("x"), message("y")]],
  ["LF and CR are two line ends", "data: x\n\rdata: y\n\r", [message("x"), message("y")]],
  ["no other character ends a line", "data: a\u2028b\x85c\n\n", [message("a\u2028b\x85c")]],
  ["a comment is ignored", ": data: x\n:\n\ndata: y\n\n", [message("y")]],
  ["an event has its type", "event: a\ndata: x\n\n", [{ event: "a", data: "x" }]],
  ["the last type counts", "event: a\nevent: b\ndata: x\n\n", [{ event: "b", data: "x" }]],
  ["a type is the event's own", "event: a\n\ndata: x\n\n", [message("x")]],
  ["an empty type is `message`", "event: a\nevent:\ndata: x\n\n", [message("x")]],
  ["a type without a colon is empty", "event: a\nevent\ndata: x\n\n", [message("x")]],
  ["data without a colon is empty", "data\n\ndata\ndata\n\ndata:", [message(""), message("\n")]],
  ["an event without data is none", "event: a\nid: 7\n\n\n\n", []],
  [
    "one space after the colon is dropped",
    "data:x\n\ndata: x\n\ndata:  x\n\ndata:\tx\n\n",
    [message("x"), message("x"), message(" x"), message("\tx")],
  ],
  ["the first colon separates", "data: a: b\n\n", [message("a: b")]],
  ["names are compared literally", "Data: x\n data: y\ndata : z\ndatas: w\n\n", []],
  [
    "id and retry change no event",
    "id: 7\nretry: 10\ndata: x\n\nid: a\0b\nretry: soon\ndata: y\n\nid\nretry\n\n",
    [message("x"), message("y")],
  ],
  ["an event without its blank line is dropped", "data: x\n\ndata: y\n", [message("x")]],
  ["a line without its end is dropped", "data: x\n\ndata: y", [message("x")]],
];

for (const [rule, stream, events] of RULES) {
  test(rule, async () => {
    const bytes = new TextEncoder().encode(stream);
    for (let cut = 0; cut <= bytes.length; cut++) {
      const chunks = [bytes.subarray(0, cut), bytes.subarray(cut)];
      assert.deepEqual(await parsed(chunks), events, `cut at ${cut}`);
    }
    const single = [...bytes].map((byte) => Uint8Array.of(byte));
    assert.deepEqual(await parsed(single), events, "byte by byte");
  });
}

test("bytes that are not UTF-8 are replaced", async () => {
  const bytes = [0x64, 0x61, 0x74, 0x61, 0x3a, 0xff, 0xe2, 0x80, 0x78, 0x0a, 0x0a];
  const chunks = bytes.map((byte) => Uint8Array.of(byte));
  assert.deepEqual(await parsed(chunks), [message("\ufffd\ufffdx")]);
});

test("an event is yielded as soon as its blank line ends", async () => {
  let source;
  const bytes = new ReadableStream({ start: (controller) => (source = controller) });
  const reader = parseEvents(bytes).getReader();
  source.enqueue(new TextEncoder().encode("data: x\r\r"));
  assert.deepEqual((await reader.read()).value, message("x"));
  await reader.cancel();
});

async function parsed(chunks) {
  const bytes = new ReadableStream({
    start(controller) {
      for (const chunk of chunks) controller.enqueue(chunk);
      controller.close();
    },
  });
  const events = [];
  for await (const event of parseEvents(bytes)) events.push(event);
  return events;
}
