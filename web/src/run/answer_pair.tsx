/** An answer of the adapted weights beside that of the base weights. */
import type { Range } from "../api/contract";
import { seconds } from "../parts/numbers";
import { Problem } from "../parts/problem";
import { visible } from "../document/visible";
import type { Asked } from "./answers";

export interface AnswerPairProps {
  readonly asked: Asked;
  /** Shows a range of the document. */
  readonly onJump: (range: Range) => void;
}

export function AnswerPair({ asked, onJump }: AnswerPairProps) {
  const { base, adapted, result, problem } = asked;
  const done = result.value;
  const quotes = done?.quotes ?? [];
  const baseQuotes = done?.base_quotes ?? [];
  return (
    <article class="answers" aria-label={`Answers to: ${asked.query}`}>
      <h3 dir="auto">{visible(asked.query)}</h3>
      <div class="pair" aria-live="polite" aria-busy={done === null && problem.value === null}>
        <section class="answer">
          <h4>Base model</h4>
          <p dir="auto">{base.value === null ? <i class="wait">…</i> : visible(base.value.trim())}</p>
          <Jumps name="Its words in the document" ranges={baseQuotes} onJump={onJump} />
        </section>
        <section class="answer adapted">
          <h4>{done?.answered_by === "kept_base" ? "Adapted (base kept)" : "Adapted"}</h4>
          <p dir="auto">{adapted.value === "" && !done ? <i class="wait">…</i> : visible(adapted.value.trim())}</p>
          <Jumps name="Its words in the document" ranges={quotes} onJump={onJump} />
          {done?.kept_base_reason && (
            <p class="note">The base weights answered: {done.kept_base_reason.replaceAll("_", " ")}.</p>
          )}
        </section>
      </div>
      <Problem error={problem.value} />
      {done && (
        <footer class="note">
          <Jumps name="Evidence" ranges={done.citations} onJump={onJump} />
          {done.usage.completion_tokens} tokens in {seconds(done.timings.total_seconds)}
        </footer>
      )}
    </article>
  );
}

type Quoted = Range & { readonly text: string; readonly page?: number | null };

interface JumpsProps {
  readonly name: string;
  readonly ranges: readonly Quoted[];
  readonly onJump: (range: Range) => void;
}

const SHOWN_CHARACTERS = 60;

/** Links into the document. */
function Jumps({ name, ranges, onJump }: JumpsProps) {
  if (ranges.length === 0) return null;
  return (
    <p class="jumps">
      <span>{name}:</span>{" "}
      {ranges.map((range) => (
        <button key={range.start} type="button" class="chip" onClick={() => onJump(range)}>
          <bdi>{visible(shortened(range.text.trim()))}</bdi>
          {range.page != null && <small> p. {range.page}</small>}
        </button>
      ))}
    </p>
  );
}

function shortened(text: string): string {
  const characters = Array.from(text);
  if (characters.length <= SHOWN_CHARACTERS) return text;
  return `${characters.slice(0, SHOWN_CHARACTERS - 1).join("")}…`;
}
