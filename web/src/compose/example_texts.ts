/** The example documents and their questions, as a build takes them from the folder `examples`. */

interface About {
  readonly demo?: number;
  readonly questions: readonly { readonly query: string }[];
}

export const TEXTS = import.meta.glob<string>(
  "../../../examples/{ships_log,contract,lab_notebook,tiny_example}.md",
  { query: "?raw", import: "default", eager: true },
);
export const ABOUT = import.meta.glob<About>(
  "../../../examples/{ships_log,contract,lab_notebook,tiny_example}.json",
  { import: "default", eager: true },
);
