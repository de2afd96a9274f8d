/** Ways to take a run elsewhere: a link, commands that do the same, its data. */
import { useState } from "preact/hooks";
import { serverUrl } from "../api/client";
import { saveText } from "../parts/save";
import type { Asked } from "./answers";
import { asCurl, asPython } from "./commands";
import type { Run } from "./run";

export function ShareMenu({ run, asked }: { run: Run; asked: readonly Asked[] }) {
  const [copied, setCopied] = useState("");
  const copy = async (name: string, text: string) => {
    await navigator.clipboard.writeText(text);
    setCopied(`${name} copied`);
  };
  const done = () => ({
    server: serverUrl,
    document: run.document.value?.id ?? null,
    adaptation: run.state.value.result?.adapt,
    query: run.query,
    asked: asked.map(({ body }) => body),
  });
  return (
    <>
      <button type="button" onClick={() => copy("Link", location.href)}>
        Copy link
      </button>
      <button type="button" onClick={() => copy("Commands", asCurl(done()))}>
        Copy as curl
      </button>
      <button type="button" onClick={() => copy("Program", asPython(done()))}>
        Copy as Python
      </button>
      <button type="button" onClick={() => saveText(`${run.id}.json`, runJson(run, asked))}>
        Download JSON
      </button>
      <span class="note" role="status">
        {copied}
      </span>
    </>
  );
}

/** Return all that is known of a run: its result, its traces and its answers. */
function runJson(run: Run, asked: readonly Asked[]): string {
  const { result, steps, before, after, phases } = run.state.value;
  const answers = asked.map((one) => ({ request: one.body, response: one.result.value }));
  const { query, document } = run;
  const data = { query, document: document.value, adaptation: result, phases, steps };
  return JSON.stringify({ ...data, trace: { before, after }, answers }, null, 2);
}
