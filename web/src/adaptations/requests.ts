/** What can be done with kept adaptations. */
import { RefineError } from "refine-server-client";
import { client, send, serverUrl, unwrap } from "../api/client";
import type { Adaptation } from "../api/contract";

/** List the adaptations of the key, the newest first. */
export async function listAdaptations(): Promise<readonly Adaptation[]> {
  return (await unwrap(client.GET("/v1/adaptations"))).data;
}

/** Rename an adaptation, or pin it so that it does not expire. */
export async function changeAdaptation(
  id: string,
  change: { name?: string | null; pinned?: boolean },
): Promise<Adaptation> {
  const response = await send(
    new Request(`${serverUrl}/v1/adaptations/${encodeURIComponent(id)}`, {
      method: "PATCH",
      headers: { "content-type": "application/json" },
      body: JSON.stringify(change),
    }),
  );
  const told = await response.json();
  if (!response.ok) throw new RefineError(told.error, response.status);
  return told;
}

/** Delete an adaptation; one that is under way is cancelled. */
export async function deleteAdaptation(id: string): Promise<void> {
  const params = { path: { adaptation_id: id } };
  await unwrap(client.DELETE("/v1/adaptations/{adaptation_id}", { params }));
}
