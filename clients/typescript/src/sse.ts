/**
 * Parses server-sent events as the HTML standard defines them, sections 9.2.5 and 9.2.6.
 *
 * https://html.spec.whatwg.org/multipage/server-sent-events.html#parsing-an-event-stream
 */

/** One event of a stream. */
export interface ServerSentEvent {
  /** The type of the event; `message` when the stream names none. */
  readonly event: string;
  /** The values of the event's `data` fields, joined by newlines. */
  readonly data: string;
}

/**
 * Parse a stream of bytes, which may be cut into chunks anywhere.
 *
 * A byte order mark at the start is dropped, and so is an event that no blank line ends. The fields
 * `id` and `retry` tell a client how to reconnect. Here a broken stream is an error instead, so they
 * are ignored like the fields that the standard does not know.
 */
export function parseEvents(bytes: ReadableStream<Uint8Array>): ReadableStream<ServerSentEvent> {
  // The decoder replaces what is not UTF-8 and drops one byte order mark.
  const text = bytes.pipeThrough(
    new TextDecoderStream() as ReadableWritablePair<string, Uint8Array>,
  );
  return text.pipeThrough(new TransformStream(new Parser()));
}

class Parser implements Transformer<string, ServerSentEvent> {
  private line = "";
  private endedInCR = false;
  private event = "";
  private data: string[] = [];

  transform(text: string, controller: TransformStreamDefaultController<ServerSentEvent>): void {
    for (const line of this.lines(text)) {
      if (line === "") {
        if (this.data.length > 0) {
          controller.enqueue({ event: this.event || "message", data: this.data.join("\n") });
        }
        this.event = "";
        this.data = [];
        continue;
      }
      const colon = line.indexOf(":"); // 0 in a comment, which is a field without a name
      const field = colon === -1 ? line : line.slice(0, colon);
      const value = colon === -1 ? "" : line.slice(colon + 1).replace(/^ /, "");
      if (field === "event") this.event = value;
      else if (field === "data") this.data.push(value);
    }
  }

  /** Return the lines that end within a text, and keep the unfinished one. */
  private lines(text: string): string[] {
    if (text === "") return [];
    // A CR ends its line at once. An LF at the start of the next text belongs to it.
    const rest = this.endedInCR && text.startsWith("\n") ? text.slice(1) : text;
    this.endedInCR = rest.endsWith("\r");
    const lines = (this.line + rest).split(/\r\n|\r|\n/);
    this.line = lines.pop() ?? "";
    return lines;
  }
}
