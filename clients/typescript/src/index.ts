/**
 * Client of refine-server: `openapi-fetch` over types generated from the server's OpenAPI document,
 * and the event streams of answers and adaptations, which OpenAPI cannot describe in full.
 *
 * ```ts
 * const client = createRefineClient({ baseUrl: "http://127.0.0.1:8000" });
 * for await (const { event, data } of streamAnswer(client, { document, query })) {
 *   if (event === "adaptation.step") console.log(data.step, data.loss);
 *   if (event === "answer.completed") console.log(data.answer);
 * }
 * ```
 */
import createClient, { type Client, type ClientOptions } from "openapi-fetch";
import { encodeBody, encodePath } from "./arguments.js";
import type { components, paths } from "./schema.js";
import { SESSION_HEADER, sessionOf } from "./session.js";
import { parseEvents } from "./sse.js";

export { InvalidArgumentError } from "./arguments.js";
export type { components, paths } from "./schema.js";

export type RefineClient = Client<paths>;
export type Answer = components["schemas"]["AnswerResponse"];
export type Step = components["schemas"]["StepReport"];
export type Question = Omit<components["schemas"]["AnswerBody"], "stream">;
export type Estimate = components["schemas"]["EstimateResponse"];
type ErrorDetail = components["schemas"]["ErrorDetail"];

export type Adaptation = components["schemas"]["AdaptationResource"];

export type ProgressEvent =
  | { event: "request.accepted"; data: components["schemas"]["RequestAccepted"] }
  | { event: "request.queued"; data: components["schemas"]["QueuePosition"] }
  | { event: "request.progress"; data: components["schemas"]["RequestProgress"] }
  | { event: "document.reading"; data: components["schemas"]["ReadingProgress"] }
  | { event: "adaptation.started"; data: components["schemas"]["AdaptationBegun"] }
  | { event: "adaptation.step"; data: components["schemas"]["StepProgress"] }
  | { event: "document.trace"; data: components["schemas"]["DocumentTrace"] };

export type AdaptationEvent =
  | ProgressEvent
  | { event: "adaptation.ready" | "adaptation.failed" | "adaptation.cancelled"; data: Adaptation };

export type AnswerEvent =
  | ProgressEvent
  | { event: "answer.base"; data: { text: string } }
  | { event: "answer.delta"; data: { text: string } }
  | { event: "answer.completed"; data: Answer };

/** The server refused a request or failed. */
export class RefineError extends Error {
  /** The kind of error, such as `invalid_request_error`. */
  readonly type: string;
  /** The exact error, such as `document_too_long`. */
  readonly code: string;
  /** The dotted path of the field at fault, if one is. */
  readonly param: string | null;

  constructor(
    detail: ErrorDetail,
    /** The status of the HTTP response; undefined for an error within a stream. */
    readonly status?: number,
  ) {
    super(detail.message);
    this.name = "RefineError";
    this.type = detail.type;
    this.code = detail.code;
    this.param = detail.param ?? null;
  }
}

/**
 * Create a client of one server, with the methods of `openapi-fetch`: `client.GET("/v1/models")`,
 * `client.POST("/v1/adaptations", { body })`, … They reject with `InvalidArgumentError` when an
 * argument cannot be encoded.
 */
export function createRefineClient(options: ClientOptions & { baseUrl: string }): RefineClient {
  const client = createClient<paths>({
    bodySerializer: encodeBody,
    pathSerializer: encodePath,
    ...options,
  });
  client.use({
    async onRequest({ request }) {
      const session = await sessionOf(request);
      if (session !== null) request.headers.set(SESSION_HEADER, session);
      return request;
    },
  });
  return client;
}

/**
 * Ask a question and follow the work; the last event is `answer.completed`. Leaving the loop early
 * closes the connection, which cancels the adaptation.
 *
 * @throws InvalidArgumentError when the question cannot be encoded.
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
  yield* readEvents<AnswerEvent>(data as ReadableStream<Uint8Array>, ["answer.completed"]);
}

/**
 * Follow an adaptation from its beginning on, also one that has ended; the last event is
 * `adaptation.ready`, `adaptation.failed` or `adaptation.cancelled`. It goes on when the loop is
 * left.
 *
 * @throws RefineError when the server refuses or fails.
 */
export async function* followAdaptation(
  client: RefineClient,
  id: string,
  signal?: AbortSignal,
): AsyncGenerator<AdaptationEvent, void, void> {
  const { data, error, response } = await client.GET("/v1/adaptations/{adaptation_id}/events", {
    params: { path: { adaptation_id: id } },
    parseAs: "stream",
    ...(signal && { signal }),
  });
  if (error) throw new RefineError(error.error, response.status);
  const last = ["adaptation.ready", "adaptation.failed", "adaptation.cancelled"];
  yield* readEvents<AdaptationEvent>(data as ReadableStream<Uint8Array>, last);
}

/** Read a stream's events until one of the `last` ones. */
async function* readEvents<E extends { event: string }>(
  bytes: ReadableStream<Uint8Array>,
  last: readonly string[],
): AsyncGenerator<E, void, void> {
  const reader = parseEvents(bytes).getReader();
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) throw new Error("the server ended the stream before its last event");
      const event = { event: value.event, data: JSON.parse(value.data) };
      if (event.event === "error") throw new RefineError(event.data.error);
      yield event as unknown as E;
      if (last.includes(event.event)) return;
    }
  } finally {
    await reader.cancel();
  }
}

/**
 * Ask a question and wait for its answer.
 *
 * @throws InvalidArgumentError when the question cannot be encoded.
 * @throws RefineError when the server refuses or fails.
 */
export async function answer(
  client: RefineClient,
  question: Question,
  signal?: AbortSignal,
): Promise<Answer> {
  for await (const { event, data } of streamAnswer(client, question, signal)) {
    if (event === "answer.completed") return data;
  }
  throw new Error("unreachable: a stream ends with its answer or throws");
}

/**
 * Ask what a question would cost, and whether the server would admit it now. Nothing is done.
 *
 * @throws InvalidArgumentError when the question cannot be encoded.
 * @throws RefineError when the server refuses or fails.
 */
export async function estimate(
  client: RefineClient,
  question: Question,
  signal?: AbortSignal,
): Promise<Estimate> {
  const { data, error, response } = await client.POST("/v1/estimate", {
    body: question,
    ...(signal && { signal }),
  });
  if (error) throw new RefineError(error.error, response.status);
  return data;
}
