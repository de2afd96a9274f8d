/** Documents as the server reads them: their text, and where their pages begin. */
import { client, unwrap } from "./client";
import type { DocumentResource } from "./contract";

const KEPT_SECONDS = 7 * 24 * 3600;

/** Upload a file; the server extracts its text. */
export function uploadDocument(file: File): Promise<DocumentResource> {
  const form = new FormData();
  form.set("expires_after[anchor]", "created_at");
  form.set("expires_after[seconds]", String(KEPT_SECONDS));
  form.set("file", file);
  const bodySerializer = () => form; // the types of a form's fields are no business of the browser's
  return unwrap(client.POST("/v1/documents", { body: {} as never, bodySerializer }));
}

/** Get a document again, for a link to a run. */
export function getDocument(id: string): Promise<DocumentResource> {
  return unwrap(client.GET("/v1/documents/{file_id}", { params: { path: { file_id: id } } }));
}

/** Return a text as a file; half a surrogate pair, which UTF-8 does not have, becomes U+FFFD. */
export function textFile(text: string, name = "pasted.txt"): File {
  return new File([text.toWellFormed()], name, { type: "text/plain" });
}
