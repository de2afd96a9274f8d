/** Where a run begins: a document, a question, settings, and what it would cost. */
import { useEffect, useState } from "preact/hooks";
import { apiKey } from "../api/client";
import { adapt, body, bodyOf, query, suggestions, text, uploadedText } from "../compose/draft";
import { keepEstimating } from "../compose/estimate";
import { EstimateLine } from "../compose/estimate_line";
import { DocumentField } from "../compose/document_field";
import { SettingsField } from "../compose/settings_field";
import { Problem } from "../parts/problem";
import { runLink } from "../parts/route";
import { startRun } from "../run/run";

/** The longest name that the server takes, in characters; a run is called by its question. */
const MAX_NAME = 200;

export function Compose() {
  const [problem, setProblem] = useState<Error | null>(null);
  const [starting, setStarting] = useState(false);
  useEffect(keepEstimating, [apiKey.value]);
  useEffect(() => setProblem(null), [body.value]);
  const asked = query.value.trim();
  const missing = !text.value.trim() || !asked || adapt.value.value === null;
  const run = async (event: Event) => {
    event.preventDefault();
    if (missing || starting) return;
    setStarting(true);
    setProblem(null);
    try {
      const { id: file_id } = await uploadedText();
      const settings = adapt.value.value ?? undefined;
      const name = Array.from(asked).slice(0, MAX_NAME).join("");
      const id = await startRun({ ...bodyOf({ file_id }, asked, settings), name });
      location.hash = runLink(id, file_id, asked);
    } catch (error) {
      setProblem(error as Error);
      setStarting(false);
    }
  };
  return (
    <form class="compose" onSubmit={run}>
      <header class="lead">
        <h1>Watch a model learn a document</h1>
        <p>
          A language model usually only reads a document. With <b>REFINE</b> it also trains on it,
          for this one request: from places where it is least sure of the next word it writes a few
          words of its own, earns a reward where they agree with what the document says, and a copy
          of its weights takes a step towards that. The copy answers; the model itself stays as it
          was. (<cite>arXiv 2602.16704</cite>)
        </p>
      </header>
      <DocumentField />
      <div class="ask">
        <label class="field">
          <span>Question</span>
          <input
            name="query"
            autocomplete="off"
            placeholder="What do you want to know?"
            value={query.value}
            onInput={(event) => (query.value = event.currentTarget.value)}
          />
        </label>
        {suggestions.value.length > 0 && (
          <p class="suggestions">
            {suggestions.value.slice(0, 4).map((other) => (
              <button key={other} type="button" class="chip" onClick={() => (query.value = other)}>
                {other}
              </button>
            ))}
          </p>
        )}
        <SettingsField />
        <div class="go">
          <button type="submit" class="primary" disabled={missing || starting}>
            {starting ? "Starting…" : "Run"}
          </button>
          <EstimateLine />
        </div>
        <Problem error={problem} />
      </div>
    </form>
  );
}
