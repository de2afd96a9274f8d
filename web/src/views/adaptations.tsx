/** The adaptations of the key: to open, rename, pin and delete. */
import { useSignal } from "@preact/signals";
import { useEffect } from "preact/hooks";
import { deleteAdaptation, listAdaptations } from "../adaptations/requests";
import { AdaptationRow } from "../adaptations/row";
import { apiKey } from "../api/client";
import type { Adaptation } from "../api/contract";
import { Problem } from "../parts/problem";

export function Adaptations() {
  const list = useSignal<readonly Adaptation[] | null>(null);
  const problem = useSignal<Error | null>(null);
  const fail = (error: Error) => (problem.value = error);
  useEffect(() => {
    problem.value = null;
    listAdaptations().then((found) => (list.value = found), fail);
  }, [apiKey.value]);
  const replace = (changed: Adaptation) => {
    list.value = list.value?.map((one) => (one.id === changed.id ? changed : one)) ?? null;
  };
  const remove = (id: string) =>
    deleteAdaptation(id).then(
      () => (list.value = list.value?.filter((one) => one.id !== id) ?? null),
      fail,
    );
  return (
    <div class="run">
      <h1>Adaptations</h1>
      <p class="note">
        Each is a copy of the weights that a document changed. It can be asked until it expires,
        which every question puts off; a pinned one stays.
      </p>
      <Problem error={problem.value} />
      {list.value?.length === 0 && (
        <p>
          There is none yet. <a href="#/">Begin with a document.</a>
        </p>
      )}
      {list.value !== null && list.value.length > 0 && (
        <div class="card table" tabIndex={0} role="region" aria-label="Adaptations">
          <table>
            <thead>
              <tr>
                <th scope="col">Name</th>
                <th scope="col">State</th>
                <th scope="col">Document</th>
                <th scope="col">Steps</th>
                <th scope="col">Size</th>
                <th scope="col">Expires</th>
                <th scope="col">
                  <span class="hidden">Actions</span>
                </th>
              </tr>
            </thead>
            <tbody>
              {list.value.map((one) => (
                <AdaptationRow
                  key={one.id}
                  adaptation={one}
                  onChange={replace}
                  onDelete={() => remove(one.id)}
                  onProblem={fail}
                />
              ))}
            </tbody>
          </table>
        </div>
      )}
    </div>
  );
}
