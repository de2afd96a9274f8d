/** The presets, with every setting that they stand for. */
import type { Body } from "../api/contract";
import settings from "./presets.json";

export type PresetName = keyof typeof settings;
export type Adapt = NonNullable<Body["adapt"]>;

/** What a preset does, in one line. */
export const PRESETS: Readonly<Record<PresetName, string>> = {
  fast: "2 steps on the evidence for the question",
  balanced: "8 steps on the evidence for the question",
  thorough: "up to 16 steps on the whole document, with a held-out guard",
  paper: "1 step on all weights over the whole document, as in the paper",
};

/** Return every setting of a preset as JSON that a person edits. */
export function settingsText(preset: PresetName): string {
  return JSON.stringify(settings[preset], null, 2);
}

/**
 * Return the `adapt` object of a request, which is always traced.
 *
 * @throws SyntaxError when the text is no JSON object.
 */
export function adaptOf(preset: PresetName, edited: string | null): Adapt {
  const own = edited === null || edited === settingsText(preset);
  // A preset for kept adaptations has the document where the paper also reads the question.
  if (own && preset === "paper") return { preset, on: { kind: "document" }, trace: true };
  if (own) return { preset, trace: true } as Adapt;
  const read: unknown = JSON.parse(edited);
  if (typeof read !== "object" || read === null || Array.isArray(read)) {
    throw new SyntaxError("the settings must be one JSON object");
  }
  return { ...(read as Adapt), trace: true };
}
