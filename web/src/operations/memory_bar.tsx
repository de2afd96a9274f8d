/** The memory budget, and what takes it. */
import { bytes } from "../parts/numbers";
import { total, type Metrics } from "./prometheus";

const KINDS = "refine_memory_bytes";

export function MemoryBar({ metrics }: { metrics: Metrics }) {
  const limit = total(metrics, "refine_memory_budget_bytes");
  const kinds = (metrics.get(KINDS) ?? []).filter(({ value }) => value > 0);
  const taken = kinds.reduce((sum, { value }) => sum + value, 0);
  if (kinds.length === 0 || !limit) return <p class="note">The server tells nothing of its memory.</p>;
  return (
    <>
      <div class="memory" aria-hidden>
        {kinds.map(({ labels, value }, index) => (
          <i key={labels.kind} data-part={index} style={{ width: `${(100 * value) / limit}%` }} />
        ))}
      </div>
      <dl class="figures">
        {kinds.map(({ labels, value }, index) => (
          <div key={labels.kind}>
            <dt>
              <i data-part={index} /> {labels.kind?.replaceAll("_", " ")}
            </dt>
            <dd>{bytes(value)}</dd>
          </div>
        ))}
        <div>
          <dt>of the budget</dt>
          <dd>
            {bytes(taken)} of {bytes(limit)}
          </dd>
        </div>
      </dl>
    </>
  );
}
