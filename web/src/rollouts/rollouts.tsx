/** The rollouts of a step, beside the document's own continuation. */
import type { Signal } from "@preact/signals";
import { useEffect, useRef } from "preact/hooks";
import type { Step, TracedPosition } from "../api/contract";
import { visible } from "../document/visible";
import { measured } from "../parts/numbers";
import { Continuation } from "./continuation";

export interface RolloutsProps {
  readonly steps: readonly Step[];
  /** The step that is looked at; null: the last one, as it comes. */
  readonly step: Signal<number | null>;
  /** The position that is looked at, from 1 on. */
  readonly position: number | null;
  readonly onChoose: (number: number, start: number | null) => void;
}

export function Rollouts({ steps, step, position, onChoose }: RolloutsProps) {
  const at = step.value ?? steps.length;
  const trace = steps[at - 1]?.trace ?? null;
  const list = useRef<HTMLOListElement>(null);
  useEffect(() => {
    list.current?.querySelector("[data-chosen]")?.scrollIntoView({ block: "nearest" });
  }, [position]);
  if (steps.length === 0) return <p class="note">The rollouts come with the first step.</p>;
  return (
    <section class="rollouts" aria-labelledby="rollouts-title">
      <div class="field-head">
        <h3 id="rollouts-title">Rollouts</h3>
        <label class="step-choice">
          <span class="note">
            step {at} of {steps.length}
          </span>
          <input
            type="range"
            min={1}
            max={steps.length}
            value={at}
            aria-label="Step"
            onInput={(event) => (step.value = event.currentTarget.valueAsNumber)}
          />
        </label>
      </div>
      {!trace && <p class="note">This step has no trace.</p>}
      {trace && trace.positions.length === 0 && <p class="note">This step had no rollouts.</p>}
      <ol ref={list} tabIndex={0} aria-label="Positions">
        {trace?.positions.map((one, index) => (
          <Position
            key={index}
            number={index + 1}
            position={one}
            isChosen={position === index + 1}
            onChoose={onChoose}
          />
        ))}
      </ol>
      {trace && trace.left_out > 0 && <p class="note">{trace.left_out} more are not listed.</p>}
    </section>
  );
}

interface PositionProps {
  readonly number: number;
  readonly position: TracedPosition;
  readonly isChosen: boolean;
  readonly onChoose: RolloutsProps["onChoose"];
}

function Position({ number, position, isChosen, onChoose }: PositionProps) {
  const own = visible(position.own.pieces.join("")).replaceAll("\n", "⏎");
  return (
    <li data-chosen={isChosen ? "" : undefined}>
      <button type="button" class="quiet" onClick={() => onChoose(number, position.start)}>
        <span class="position-number">{number}</span> entropy {measured(position.entropy)}
      </button>
      <p class="own" dir="auto">
        <span class="hidden">The document: </span>
        {own}
      </p>
      {position.rollouts.map((rollout, index) => (
        <Continuation key={index} rollout={rollout} />
      ))}
    </li>
  );
}
