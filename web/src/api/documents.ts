/** Documents as the server reads them: their text, and where their pages begin. */
import { client, unwrap } from "./client";
import type { DocumentResource } from "./contract";

/** Upload a file; the server extracts its text. */
export async function uploadDocument(file: File): Promise<DocumentResource> {
  const form = new FormData();
  form.set("purpose", "user_data");
  form.set("file", file);
  const made = await unwrap(
    client.POST("/v1/files", { body: form as never, bodySerializer: (body) => body as never }),
  );
  return getDocument(made.id);
}

/** Get a document again, for a link to a run. */
export async function getDocument(id: string): Promise<DocumentResource> {
  const text = await unwrap(
    client.GET("/v1/files/{file_id}/content", {
      params: { path: { file_id: id } },
      parseAs: "text",
    }) as never as Promise<{ data: string; response: Response }>,
  );
  return { id, filename: "document", text, pages: [] };
}

/** Return a text as a file; half a surrogate pair, which UTF-8 does not have, becomes U+FFFD. */
export function textFile(text: string, name = "pasted.txt"): File {
  return new File([text.toWellFormed()], name, { type: "text/plain" });
}
