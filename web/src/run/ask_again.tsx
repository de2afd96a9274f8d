/** A field for further questions to the same adaptation. */
import { useState } from "preact/hooks";

export function AskAgain({ onAsk }: { onAsk: (query: string) => void }) {
  const [query, setQuery] = useState("");
  const submit = (event: Event) => {
    event.preventDefault();
    if (!query.trim()) return;
    onAsk(query.trim());
    setQuery("");
  };
  return (
    <form class="ask-again" onSubmit={submit}>
      <label class="field">
        <span class="hidden">Ask the same adaptation</span>
        <input
          autocomplete="off"
          placeholder="Ask the same adaptation something else"
          value={query}
          onInput={(event) => setQuery(event.currentTarget.value)}
        />
      </label>
      <button type="submit" disabled={!query.trim()}>
        Ask
      </button>
    </form>
  );
}
