/** The field for the API key; it opens by itself when the server refuses a request without one. */
import { useEffect, useRef, useState } from "preact/hooks";
import { apiKey, keyRefused, setApiKey } from "../api/client";

export function KeyDialog() {
  const dialog = useRef<HTMLDialogElement>(null);
  const refused = keyRefused.value;
  useEffect(() => {
    if (refused && !dialog.current?.open) dialog.current?.showModal();
  }, [refused]);
  return (
    <>
      <button class="quiet" type="button" onClick={() => dialog.current?.showModal()}>
        {apiKey.value ? "Key set" : "Key"}
      </button>
      <dialog ref={dialog} aria-labelledby="key-title">
        <KeyForm onDone={() => dialog.current?.close()} />
      </dialog>
    </>
  );
}

function KeyForm({ onDone }: { onDone: () => void }) {
  const [key, setKey] = useState(apiKey.value);
  const save = (event: Event) => {
    event.preventDefault();
    setApiKey(key.trim());
    onDone();
  };
  return (
    <form onSubmit={save}>
      <h2 id="key-title">API key</h2>
      {keyRefused.value && (
        <p role="alert" class="problem">
          {apiKey.value ? "The server does not know this key." : "The server asks for a key."}
        </p>
      )}
      <label class="field">
        <span>Key</span>
        <input
          type="password"
          autocomplete="off"
          value={key}
          onInput={(event) => setKey(event.currentTarget.value)}
        />
      </label>
      <p class="note">It is kept in this tab alone and forgotten when the tab is closed.</p>
      <div class="actions">
        <button type="submit" class="primary">
          Use this key
        </button>
        <button type="button" onClick={onDone}>
          Close
        </button>
      </div>
    </form>
  );
}
