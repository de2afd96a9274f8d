/** The document of a run as a heat map, beside the rollouts of a step. */
import { useSignal, type Signal } from "@preact/signals";
import { useEffect, useMemo, useRef } from "preact/hooks";
import type { Range } from "../api/contract";
import { Rollouts } from "../rollouts/rollouts";
import type { Asked } from "../run/answers";
import type { Run } from "../run/run";
import { CodePoints } from "./code_points";
import { HeatMap, placeId } from "./heat_map";
import { HeatControls, type Shown } from "./heat_controls";
import { heatOf } from "./levels";
import { marksOf } from "./marks";
import { Overview } from "./overview";
import { Readout } from "./readout";
import { segmentsOf } from "./segments";

export interface DocumentPaneProps {
  readonly run: Run;
  readonly asked: readonly Asked[];
  /** The range to show. */
  readonly focus: Signal<Range | null>;
  /** The step that is looked at; null: the last one, as it comes. */
  readonly step: Signal<number | null>;
}

const NO_BINS = { starts: [], ends: [] };

export function DocumentPane({ run, asked, focus, step }: DocumentPaneProps) {
  const { before, after, steps, result } = run.state.value;
  const document = run.document.value;
  const shown = useSignal<Shown>({ measure: "entropy", stage: "before" });
  const position = useSignal<number | null>(null);
  const pointed = useSignal<number | null>(null);
  const paper = useRef<HTMLDivElement>(null);
  const at = step.value ?? steps.length;
  const positions = steps[at - 1]?.trace?.positions;
  const text = useMemo(() => new CodePoints(document?.text ?? ""), [document]);
  const answer = asked[0]?.result.value ?? null;
  const segments = useMemo(
    () => segmentsOf(text, before ?? NO_BINS, marksOf({ document, before, result, answer, positions })),
    [text, before, result, answer, positions],
  );
  const heat = heatOf(before, after, shown.value.measure, shown.value.stage);
  useEffect(() => {
    if (focus.value && paper.current) show(paper.current, focus.value.start);
  }, [focus.value, segments]);
  if (document === null) return <p class="note">This link has no document to show.</p>;
  const choose = (number: number, start: number | null) => {
    position.value = number;
    if (start !== null && paper.current) show(paper.current, start);
  };
  return (
    <>
      <HeatControls before={before} after={after} shown={shown} heat={heat} />
      <div class="beside">
        <div class="page">
          <div
            ref={paper}
            class="paper"
            tabIndex={0}
            role="region"
            aria-label="The document's text"
            onPointerOver={(event) => (pointed.value = binAt(event.target))}
            onPointerLeave={() => (pointed.value = null)}
          >
            <HeatMap
              segments={segments}
              levels={heat?.levels ?? null}
              position={position.value}
              onPosition={(number) => choose(number, null)}
            />
          </div>
          <Overview
            segments={segments}
            levels={heat?.levels ?? null}
            onGo={(share) => paper.current && scrollToShare(paper.current, share)}
          />
          <Readout bin={pointed} text={text} before={before} after={after} />
          <Legend />
        </div>
        <Rollouts steps={steps} step={step} position={position.value} onChoose={choose} />
      </div>
    </>
  );
}

function Legend() {
  return (
    <p class="legend note">
      <span class="evidence">evidence</span> <span class="quote">words of the answers</span>{" "}
      <span>
        <span class="position-number">1</span> start of rollouts
      </span>
    </p>
  );
}

const FLASH_MS = 1600;

/** Scroll to where a range begins, and let it be noticed. */
function show(paper: HTMLElement, start: number): void {
  const target = paper.querySelector<HTMLElement>(`#${placeId(start)}`);
  if (!target) return;
  target.scrollIntoView({ block: "center", inline: "nearest" });
  target.classList.add("flash");
  setTimeout(() => target.classList.remove("flash"), FLASH_MS);
}

function scrollToShare(paper: HTMLElement, share: number): void {
  paper.scrollTo({ top: share * paper.scrollHeight - paper.clientHeight / 2 });
}

function binAt(target: EventTarget | null): number | null {
  const { bin } = (target as HTMLElement).dataset;
  return bin === undefined ? null : Number(bin);
}
