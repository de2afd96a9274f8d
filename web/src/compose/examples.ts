/** The example documents. Their texts are loaded when one is chosen. */

export interface Example {
  readonly name: string;
  readonly title: string;
}

/** The examples; the last one is for the model `tiny`, which knows a small world of its own. */
export const EXAMPLES: readonly Example[] = [
  { name: "ships_log", title: "A ship’s log" },
  { name: "contract", title: "A contract" },
  { name: "lab_notebook", title: "A lab notebook" },
  { name: "tiny_example", title: "A tiny world" },
];

/** Load an example's text and its questions, the one to begin with first. */
export async function loadExample(name: string): Promise<{ text: string; queries: string[] }> {
  const { ABOUT, TEXTS } = await import("./example_texts");
  const path = `../../../examples/${name}`;
  const about = ABOUT[`${path}.json`]!;
  const queries = about.questions.map(({ query }) => query);
  const first = queries.splice(about.demo ?? 0, 1);
  return { text: TEXTS[`${path}.md`]!, queries: [...first, ...queries] };
}
