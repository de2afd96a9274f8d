/** A run: its phases, curves, document and answers, as they come. */
import { useSignal } from "@preact/signals";
import { useEffect, useMemo, useRef } from "preact/hooks";
import type { Range } from "../api/contract";
import { DocumentPane } from "../document/document_pane";
import { Problem } from "../parts/problem";
import { SavePlots } from "../plots/save_plots";
import { AnswerPair } from "../run/answer_pair";
import { ask, type Asked } from "../run/answers";
import { AskAgain } from "../run/ask_again";
import { Curves } from "../run/curves";
import { openRun } from "../run/run";
import { RunHead } from "../run/run_head";
import { Weights } from "../run/weights";

const ANSWER_TOKENS = 64;

export interface RunViewProps {
  readonly id: string;
  readonly file: string | null;
  readonly query: string;
}

export function RunView({ id, file, query }: RunViewProps) {
  const run = useMemo(() => openRun(id, query, file), [id, query, file]);
  useEffect(() => run.stop, [run]);
  const asked = useSignal<readonly Asked[]>([]);
  const focus = useSignal<Range | null>(null);
  const step = useSignal<number | null>(null);
  const pane = useRef<HTMLElement>(null);
  const plots = useRef<HTMLElement>(null);
  const state = run.state.value;
  const { result } = state;
  const question = (text: string) => {
    if (result) asked.value = [ask(result, text, ANSWER_TOKENS), ...asked.value];
  };
  useEffect(() => {
    if (result?.status === "ready" && query) question(query);
  }, [result]);
  const jump = (range: Range) => {
    focus.value = { ...range };
    pane.current?.scrollIntoView({ block: "start", behavior: "smooth" });
  };
  return (
    <div class="run">
      <RunHead run={run} asked={asked.value} />
      <Problem error={run.problem.value} />
      {result?.error && <Problem error={new Error(result.error.message)} />}
      {result?.status === "ready" && (
        <section class="card" aria-labelledby="answers-title">
          <h2 id="answers-title">Answers</h2>
          {asked.value.map((one, index) => (
            <AnswerPair key={asked.value.length - index} asked={one} onJump={jump} />
          ))}
          <AskAgain onAsk={question} />
        </section>
      )}
      <section class="card" aria-labelledby="document-title" ref={pane}>
        <h2 id="document-title">Document</h2>
        <DocumentPane run={run} asked={asked.value} focus={focus} step={step} />
      </section>
      <section class="card" aria-labelledby="curves-title" ref={plots}>
        <div class="field-head">
          <h2 id="curves-title">Steps</h2>
          <SavePlots name={id} container={plots} />
        </div>
        <Curves steps={state.steps} maxSteps={state.maxSteps} heldOut={result?.held_out ?? []} />
        <Weights steps={state.steps} step={step} />
      </section>
    </div>
  );
}
