/** Runs: an adaptation to a document, aimed by a question, and the answers from it. */
import { signal, type Signal } from "@preact/signals";
import { followAdaptation } from "refine-server-client";
import { client, unwrap } from "../api/client";
import type { Body, DocumentResource } from "../api/contract";
import { getDocument } from "../api/documents";
import { advance, startOf, type RunState } from "./state";

/** A run that the page shows. */
export interface Run {
  readonly id: string;
  readonly query: string;
  /** Null until it is there, and where the link has none. */
  readonly document: Signal<DocumentResource | null>;
  readonly state: Signal<RunState>;
  /** What went wrong in following it; the run itself may go on. */
  readonly problem: Signal<Error | null>;
  readonly stop: () => void;
}

const seconds = () => performance.now() / 1000;

/** Begin a run and return its id. An equal one that exists is joined. */
export async function startRun(body: Body): Promise<string> {
  const { id } = await unwrap(client.POST("/v1/adaptations", { body }));
  return id;
}

/** Follow a run from its beginning on, by its link alone. */
export function openRun(id: string, query: string, fileId: string | null): Run {
  const aborter = new AbortController();
  const run: Run = {
    id,
    query,
    document: signal(null),
    state: signal(startOf(seconds())),
    problem: signal(null),
    stop: () => aborter.abort(),
  };
  const fail = (error: unknown) => {
    if (!aborter.signal.aborted) run.problem.value = error as Error;
  };
  if (fileId) getDocument(fileId).then((found) => (run.document.value = found), fail);
  follow(run, aborter.signal).catch(fail);
  return run;
}

async function follow(run: Run, stopped: AbortSignal): Promise<void> {
  let state = startOf(seconds());
  for await (const event of followAdaptation(client, run.id, stopped)) {
    state = advance(state, event, seconds());
    run.state.value = state;
  }
}
