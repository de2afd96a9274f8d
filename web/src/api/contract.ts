/** Types of the server's contract, by short names. */
import type { components } from "refine-server-client";

type Schemas = components["schemas"];

export type { Adaptation, AdaptationEvent, Answer, Estimate } from "refine-server-client";
export type Body = Schemas["AdaptationBody"];
export type DocumentResource = Schemas["DocumentResource"];
export type DocumentTrace = Schemas["DocumentTrace"];
export type HeldOut = Schemas["EvalResult"];
export type Rollout = Schemas["TracedRollout"];
export type Step = Schemas["StepProgress"];
export type TracedPosition = Schemas["TracedPosition"];
export type WeightChange = Schemas["LayerChange"];

/** A range of characters (code points) of the document. */
export interface Range {
  readonly start: number;
  readonly end: number;
}
