/** What the person is about to run: a document, a question and settings. */
import { computed, signal } from "@preact/signals";
import type { Body, DocumentResource } from "../api/contract";
import { textFile, uploadDocument } from "../api/documents";
import { adaptOf, type PresetName } from "./presets";

/** The text of the document as it is in the field. */
export const text = signal("");
/** The document that was uploaded, while the field still has its text. */
export const uploaded = signal<DocumentResource | null>(null);
export const query = signal("");
/** Further questions of an example. */
export const suggestions = signal<readonly string[]>([]);
export const preset = signal<PresetName>("balanced");
/** The settings as edited; null while they are the preset's own. */
export const edited = signal<string | null>(null);

/** The `adapt` object, or why there is none. */
export const adapt = computed(() => {
  try {
    return { value: adaptOf(preset.value, edited.value), error: null };
  } catch (error) {
    return { value: null, error: (error as Error).message };
  }
});

/** The request as it stands, for an estimate; null while a part is missing. */
export const body = computed<Body | null>(() => {
  const asked = query.value.trim();
  if (!text.value.trim() || !asked || !adapt.value.value) return null;
  const document = uploaded.value ? { file_id: uploaded.value.id } : text.value.toWellFormed();
  return bodyOf(document, asked, adapt.value.value);
});

/** Return the request for a run. Questions aim an adaptation, and its trace in any case. */
export function bodyOf(document: Body["document"], asked: string, settings: Body["adapt"]): Body {
  return { document, queries: [asked], adapt: settings } as Body;
}

/** Put a text into the field, with questions about it. */
export function setText(next: string, queries: readonly string[] = []): void {
  text.value = next;
  uploaded.value = null;
  suggestions.value = queries.slice(1);
  if (queries[0] !== undefined) query.value = queries[0];
}

/** Upload a file and put its text into the field. */
export async function setFile(file: File): Promise<void> {
  const found = await uploadDocument(file);
  setText(found.text);
  uploaded.value = found;
}

/** Return the document as a file of the server's, which a link to the run can name. */
export async function uploadedText(): Promise<DocumentResource> {
  uploaded.value ??= await uploadDocument(textFile(text.value));
  return uploaded.value;
}
