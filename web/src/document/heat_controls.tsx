/** What the heat map shows, the scale of its colours, and its sums. */
import type { Signal } from "@preact/signals";
import type { DocumentTrace } from "../api/contract";
import { measured, percent } from "../parts/numbers";
import { heatOf, means, type Heat, type Measure, type Stage } from "./levels";

export interface Shown {
  readonly measure: Measure;
  readonly stage: Stage;
}

export interface HeatControlsProps {
  readonly before: DocumentTrace | null;
  readonly after: DocumentTrace | null;
  readonly shown: Signal<Shown>;
  readonly heat: Heat | null;
}

const MEASURES: Readonly<Record<Measure, string>> = {
  entropy: "Entropy",
  attention: "Attention of the question",
};
const STAGES: Readonly<Record<Stage, string>> = {
  before: "Before",
  after: "After",
  change: "Change",
};

export function HeatControls({ before, after, shown, heat }: HeatControlsProps) {
  if (before === null) return null;
  const { measure, stage } = shown.value;
  const has = (next: Shown) => heatOf(before, after, next.measure, next.stage) !== null;
  return (
    <div class="heat-controls">
      <Choice
        name="Colour by"
        options={MEASURES}
        value={measure}
        isThere={(next) => has({ measure: next, stage: "before" })}
        onChoose={(next) =>
          (shown.value = has({ measure: next, stage })
            ? { measure: next, stage }
            : { measure: next, stage: "before" })
        }
      />
      <Choice
        name="Stage"
        options={STAGES}
        value={stage}
        isThere={(next) => has({ measure, stage: next })}
        onChoose={(next) => (shown.value = { measure, stage: next })}
      />
      {heat && <Scale heat={heat} measure={measure} stage={stage} />}
      <p class="note sums">{sums(before, after)}</p>
    </div>
  );
}

interface ChoiceProps<K extends string> {
  readonly name: string;
  readonly options: Readonly<Record<K, string>>;
  readonly value: K;
  readonly isThere: (key: K) => boolean;
  readonly onChoose: (key: K) => void;
}

function Choice<K extends string>({ name, options, value, isThere, onChoose }: ChoiceProps<K>) {
  return (
    <div class="choice" role="group" aria-label={name}>
      {(Object.keys(options) as K[]).map((key) => (
        <button
          key={key}
          type="button"
          aria-pressed={key === value}
          disabled={!isThere(key)}
          onClick={() => onChoose(key)}
        >
          {options[key]}
        </button>
      ))}
    </div>
  );
}

function Scale({ heat, measure, stage }: { heat: Heat } & Shown) {
  const write = measure === "attention" ? percent : (value: number) => `${measured(value)} nats`;
  const levels = stage === "change" ? [-9, -6, -3, 0, 3, 6, 9] : [0, 2, 4, 6, 9];
  return (
    <span class="scale">
      <small>{stage === "change" ? `−${write(heat.top)}` : "0"}</small>
      {levels.map((level) => (
        <i key={level} data-level={level} />
      ))}
      <small>{write(heat.top)}</small>
    </span>
  );
}

function sums(before: DocumentTrace, after: DocumentTrace | null): string {
  const arrow = (first: string | null, second: string | null) => [first, second].filter(Boolean).join(" → ");
  const entropy = means(before.entropy, after?.entropy ?? null);
  const [first, second] = entropy.map((value) => (value === null ? null : measured(value)));
  const partly = after !== null && after.entropy.includes(null) && before.evidence.length > 0;
  const where = partly ? " on the evidence" : "";
  const told = [`Mean entropy${where} ${arrow(first ?? null, second ?? null)} nats`];
  const attention = [before, after].map((trace) => trace?.evidence_attention ?? null);
  const [old, young] = attention.map((value) => (value === null ? null : percent(value)));
  if (old) told.push(`${arrow(old, young ?? null)} of the question’s attention lies on the evidence`);
  return `${told.join(". ")}.`;
}
