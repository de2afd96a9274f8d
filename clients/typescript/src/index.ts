/**
 * Client of refine-server: `openapi-fetch` over types generated from the server's OpenAPI document,
 * and the event stream of `POST /v1/answers`, which OpenAPI cannot describe in full.
 */
import { EventSourceParserStream } from "eventsource-parser/stream";
import createClient, { type Client, type ClientOptions } from "openapi-fetch";
import type { components, paths } from "./schema.js";

export type { components, paths } from "./schema.js";

export type RefineClient = Client<paths>;
export type Answer = components["schemas"]["AnswerResponse"];
export type Step = components["schemas"]["Step"];
export type Question = Omit<components["schemas"]["AnswerBody"], "stream">;
type ErrorDetail = components["schemas"]["ErrorDetail"];

export type AnswerEvent =
  | { event: "answer.base"; data: { text: string } }
  | { event: "adaptation.step"; data: Step }
  | { event: "answer.delta"; data: { text: string } }
  | { event: "answer.completed"; data: Answer };

/** What the server says of a request that it did not answer; `param` is the field at fault. */
export class RefineError extends Error {
  readonly type: string;
  readonly code: string;
  readonly param: string | null;

  constructor(
    detail: ErrorDetail,
    /** Of the HTTP response; undefined for an error within a stream. */
    readonly status?: number,
  ) {
    super(detail.message);
    this.name = "RefineError";
    this.type = detail.type;
    this.code = detail.code;
    this.param = detail.param ?? null;
  }
}

/** A client of one server: `client.GET("/v1/models")`, `client.POST("/v1/answers", { body })`, … */
export function createRefineClient(options: ClientOptions & { baseUrl: string }): RefineClient {
  return createClient<paths>(options);
}

/**
 * Ask a question and follow the work; the last event is `answer.completed`. Leaving the loop early
 * closes the connection, which cancels the adaptation.
 *
 * @throws RefineError when the server refuses or fails.
 */
export async function* streamAnswer(
  client: RefineClient,
  question: Question,
  signal?: AbortSignal,
): AsyncGenerator<AnswerEvent, void, void> {
  const { data, error, response } = await client.POST("/v1/answers", {
    body: { ...question, stream: true },
    parseAs: "stream",
    ...(signal && { signal }),
  });
  if (error) throw new RefineError(error.error, response.status);
  const events = (data as ReadableStream<Uint8Array>)
    .pipeThrough(new TextDecoderStream() as ReadableWritablePair<string, Uint8Array>)
    .pipeThrough(new EventSourceParserStream());
  const reader = events.getReader();
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) throw new Error("the server ended the stream without an answer");
      const told = JSON.parse(value.data);
      if (value.event === "error") throw new RefineError(told.error);
      yield { event: value.event, data: told } as AnswerEvent;
      if (value.event === "answer.completed") return;
    }
  } finally {
    await reader.cancel();
  }
}

/** Ask a question and wait for its answer. */
export async function answer(
  client: RefineClient,
  question: Question,
  signal?: AbortSignal,
): Promise<Answer> {
  for await (const told of streamAnswer(client, question, signal)) {
    if (told.event === "answer.completed") return told.data;
  }
  throw new Error("a stream ends with its answer or throws");
}
