/** The document: pasted, dropped, chosen from the disk, or an example. */
import { useRef, useState } from "preact/hooks";
import { Problem } from "../parts/problem";
import { setFile, setText, text, uploaded } from "./draft";
import { EXAMPLES, loadExample } from "./examples";

const TYPES = ".txt,.md,.html,.htm,.docx,.pdf";

export function DocumentField() {
  const [problem, setProblem] = useState<Error | null>(null);
  const [reading, setReading] = useState<string | null>(null);
  const [over, setOver] = useState(false);
  const chooser = useRef<HTMLInputElement>(null);
  const take = async (file: File | undefined) => {
    if (!file) return;
    setProblem(null);
    setReading(file.name);
    await setFile(file).catch(setProblem);
    setReading(null);
  };
  const drop = (event: DragEvent) => {
    const file = event.dataTransfer?.files[0];
    setOver(false);
    if (!file) return; // text, which the field takes by itself
    event.preventDefault();
    void take(file);
  };
  return (
    <section
      class={`document ${over ? "over" : ""}`}
      aria-label="Document"
      onDragOver={(event) => {
        event.preventDefault();
        setOver(true);
      }}
      onDragLeave={() => setOver(false)}
      onDrop={drop}
    >
      <div class="field-head">
        <label for="document-text">Document</label>
        <span class="note" aria-live="polite">
          {reading === null ? countOf(text.value) : `Reading ${reading}…`}
        </span>
      </div>
      <textarea
        id="document-text"
        dir="auto"
        spellcheck={false}
        placeholder="Paste a text, or drop a file: txt, md, html, docx, pdf."
        value={text.value}
        onInput={(event) => setText(event.currentTarget.value)}
      />
      <div class="sources">
        <button type="button" onClick={() => chooser.current?.click()}>
          Choose a file…
        </button>
        <input
          ref={chooser}
          class="hidden"
          type="file"
          accept={TYPES}
          tabIndex={-1}
          aria-label="Document file"
          onChange={(event) => take(event.currentTarget.files?.[0])}
        />
        <span class="note">or an example:</span>
        {EXAMPLES.map(({ name, title }) => (
          <button
            key={name}
            type="button"
            class="chip"
            onClick={() =>
              loadExample(name).then((found) => setText(found.text, found.queries), setProblem)
            }
          >
            {title}
          </button>
        ))}
      </div>
      <Problem error={problem} />
    </section>
  );
}

function countOf(value: string): string {
  const { value: file } = uploaded;
  const name = file && file.filename !== "pasted.txt" ? `${file.filename} · ` : "";
  const pages = file && file.pages.length > 0 ? ` · ${file.pages.length} pages` : "";
  return value ? `${name}${value.length.toLocaleString("en")} characters${pages}` : "";
}
