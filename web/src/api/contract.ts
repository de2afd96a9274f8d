/** Types of the server's contract, by short names. */
import type { Adaptation as Made, components } from "refine-server-client";

type Schemas = components["schemas"];

export type { Estimate } from "refine-server-client";
export type Adaptation = Made & { readonly name?: string | null; readonly pinned?: boolean };
export type Answer = Schemas["AnswerResponse"] & { base_quotes?: Quote[] };
export type Citation = Schemas["Citation"] & { page?: number | null };
export type Quote = Schemas["Quote"] & { page?: number | null };

/** A range of characters (code points) of the document. */
export interface Range {
  readonly start: number;
  readonly end: number;
}

export interface Page extends Range {
  readonly number: number;
}

export interface DocumentResource {
  readonly id: string;
  readonly filename: string;
  readonly text: string;
  readonly pages: readonly Page[];
}

/** How the model reads the document, before or after the adaptation (`document.trace`). */
export interface DocumentTrace {
  readonly stage: "before" | "after";
  readonly step: number;
  readonly tokens: number;
  readonly tokens_per_bin: number;
  readonly starts: readonly number[];
  readonly ends: readonly number[];
  readonly entropy: readonly (number | null)[];
  readonly attention: readonly (number | null)[] | null;
  readonly attention_layers: readonly number[];
  readonly evidence: readonly Range[];
  readonly evidence_attention: number | null;
  readonly spans: readonly Range[];
  readonly held_out: readonly Range[];
}

export interface Rollout {
  readonly pieces: readonly string[];
  readonly matches: readonly boolean[];
  readonly reward: number | null;
  readonly advantage: number | null;
  readonly is_demonstration: boolean;
}

export interface TracedPosition {
  readonly start: number | null;
  readonly end: number | null;
  readonly entropy: number | null;
  readonly own: { readonly pieces: readonly string[] };
  readonly rollouts: readonly Rollout[];
}

export interface WeightChange {
  readonly layer: number | null;
  readonly change: number | null;
  readonly relative: number | null;
}

export interface StepTrace {
  readonly positions: readonly TracedPosition[];
  readonly left_out: number;
  readonly weights: readonly WeightChange[];
}

export type Step = Omit<Schemas["StepProgress"], "trace"> & { readonly trace: StepTrace | null };
export type HeldOut = Adaptation["held_out"][number];
export type Body = Schemas["AdaptationBody"];
