/** Adaptations that wait or are being made, of the key that looks. */
import type { Adaptation } from "../api/contract";
import { seconds } from "../parts/numbers";
import { runLink } from "../parts/route";

export function RunningTable({ adaptations }: { adaptations: readonly Adaptation[] }) {
  if (adaptations.length === 0) return <p class="note">None of this key.</p>;
  return (
    <div class="table" tabIndex={0} role="region" aria-label="Adaptations in work">
      <table>
        <thead>
          <tr>
            <th scope="col">Adaptation</th>
            <th scope="col">State</th>
            <th scope="col">Steps</th>
            <th scope="col">Left</th>
          </tr>
        </thead>
        <tbody>
          {adaptations.map((one) => (
            <tr key={one.id}>
              <td>
                <a href={runLink(one.id, null, "")}>{one.id}</a>
              </td>
              <td>{one.queue_position > 0 ? `place ${one.queue_position} in the queue` : one.status}</td>
              <td>
                <progress
                  max={one.adapt.optimizer?.steps ?? 1}
                  value={one.steps.length}
                  aria-label="Steps made"
                />{" "}
                {one.steps.length} of {one.adapt.optimizer?.steps}
              </td>
              <td>{one.seconds_left == null ? "–" : seconds(one.seconds_left)}</td>
            </tr>
          ))}
        </tbody>
      </table>
    </div>
  );
}
