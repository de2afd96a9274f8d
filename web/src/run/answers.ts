/** Questions to an adaptation, answered by its weights and, beside them, by the base weights. */
import { signal, type Signal } from "@preact/signals";
import { streamAnswer } from "refine-server-client";
import { client } from "../api/client";
import type { Adaptation, Answer } from "../api/contract";

/** A question, and what came of it so far. */
export interface Asked {
  readonly query: string;
  readonly body: Record<string, unknown>;
  readonly base: Signal<string | null>;
  readonly adapted: Signal<string>;
  readonly result: Signal<Answer | null>;
  readonly problem: Signal<Error | null>;
}

/** Return the request that asks an adaptation; one on evidence also cites the evidence. */
export function questionTo(adaptation: Adaptation, query: string, maxTokens: number) {
  const cites = adaptation.adapt.on?.kind === "evidence";
  return {
    adaptation: adaptation.id,
    query,
    compare_base: true,
    max_tokens: maxTokens,
    ...(cites && { evidence: { by: "bm25" as const } }),
  };
}

/** Ask an adaptation that is ready. */
export function ask(adaptation: Adaptation, query: string, maxTokens: number): Asked {
  const body = questionTo(adaptation, query, maxTokens);
  const asked: Asked = {
    query,
    body,
    base: signal(null),
    adapted: signal(""),
    result: signal(null),
    problem: signal(null),
  };
  receive(asked, body).catch((error: Error) => (asked.problem.value = error));
  return asked;
}

async function receive(asked: Asked, body: ReturnType<typeof questionTo>): Promise<void> {
  for await (const { event, data } of streamAnswer(client, body as never)) {
    if (event === "answer.base") asked.base.value = data.text;
    if (event === "answer.delta") asked.adapted.value += data.text;
    if (event === "answer.completed") {
      asked.base.value = data.base_answer ?? null;
      asked.adapted.value = data.answer; // the guard may choose another one than was streamed
      asked.result.value = data;
    }
  }
}
