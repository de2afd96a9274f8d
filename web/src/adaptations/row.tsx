/** One adaptation in the list. */
import { useState } from "preact/hooks";
import type { Adaptation } from "../api/contract";
import { visible } from "../document/visible";
import { bytes, seconds } from "../parts/numbers";
import { runLink } from "../parts/route";
import { changeAdaptation } from "./requests";

export interface AdaptationRowProps {
  readonly adaptation: Adaptation;
  readonly onChange: (changed: Adaptation) => void;
  readonly onDelete: () => void;
  readonly onProblem: (error: Error) => void;
}

export function AdaptationRow({ adaptation, onChange, onDelete, onProblem }: AdaptationRowProps) {
  const [renaming, setRenaming] = useState(false);
  const { id, name, pinned, status, steps, document_tokens: tokens } = adaptation;
  const called = name ?? id;
  const change = (what: { name?: string; pinned?: boolean }) =>
    changeAdaptation(id, what).then(onChange, onProblem);
  return (
    <tr>
      <th scope="row">
        {renaming ? (
          <NameForm
            name={name ?? ""}
            onName={(next) => {
              setRenaming(false);
              if (next !== (name ?? "")) void change({ name: next });
            }}
          />
        ) : (
          <a href={runLink(id, null, "")} dir="auto">
            {visible(called)}
          </a>
        )}
      </th>
      <td>{status}</td>
      <td>{tokens == null ? "–" : `${tokens.toLocaleString("en")} tokens`}</td>
      <td>{steps.length}</td>
      <td>{bytes(adaptation.bytes)}</td>
      <td>{pinned ? "never" : expiry(adaptation.expires_at)}</td>
      <td class="row-actions">
        <button type="button" aria-label={`Rename ${called}`} onClick={() => setRenaming(true)}>
          Rename
        </button>
        <button
          type="button"
          aria-label={`Pin ${called}`}
          aria-pressed={pinned}
          onClick={() => change({ pinned: !pinned })}
        >
          {pinned ? "Pinned" : "Pin"}
        </button>
        <button type="button" aria-label={`Delete ${called}`} onClick={onDelete}>
          Delete
        </button>
      </td>
    </tr>
  );
}

const MAX_NAME = 200;

function NameForm({ name, onName }: { name: string; onName: (name: string) => void }) {
  const [text, setText] = useState(name);
  const submit = (event: Event) => {
    event.preventDefault();
    onName(text.trim());
  };
  return (
    <form class="ask-again" onSubmit={submit}>
      <input
        aria-label="Name"
        maxLength={MAX_NAME}
        value={text}
        onInput={(event) => setText(event.currentTarget.value)}
        onKeyDown={(event) => event.key === "Escape" && onName(name)}
      />
      <button type="submit">Save</button>
    </form>
  );
}

function expiry(at: number | null | undefined): string {
  if (at == null) return "–";
  return `in ${seconds(Math.max(0, at - Date.now() / 1000))}`;
}
