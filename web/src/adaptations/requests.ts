/** What can be done with kept adaptations. */
import { client, unwrap } from "../api/client";
import type { Adaptation } from "../api/contract";

/** List the adaptations of the key, the newest first. */
export async function listAdaptations(): Promise<readonly Adaptation[]> {
  return (await unwrap(client.GET("/v1/adaptations"))).data;
}

/** Rename an adaptation, or pin it so that it does not expire. */
export function changeAdaptation(
  id: string,
  change: { name?: string; pinned?: boolean },
): Promise<Adaptation> {
  const params = { path: { adaptation_id: id } };
  return unwrap(client.PATCH("/v1/adaptations/{adaptation_id}", { params, body: change }));
}

/** Delete an adaptation; one that is under way is cancelled. */
export async function deleteAdaptation(id: string): Promise<void> {
  const params = { path: { adaptation_id: id } };
  await unwrap(client.DELETE("/v1/adaptations/{adaptation_id}", { params }));
}
