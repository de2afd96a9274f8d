/** The server at work: queue, running adaptations, throughput, caches and memory. */
import { useEffect } from "preact/hooks";
import { levels, meanOf, rates, shareOf } from "../operations/history";
import { MemoryBar } from "../operations/memory_bar";
import { history, keepPolling, pollError, running } from "../operations/poll";
import { total, type Metrics } from "../operations/prometheus";
import { RunningTable } from "../operations/running_table";
import { bytes, measured, percent, seconds } from "../parts/numbers";
import { Problem } from "../parts/problem";
import { Sparkline } from "../plots/sparkline";

export function Operations() {
  useEffect(keepPolling, []);
  const { value: seen } = history;
  const now = seen.at(-1)?.metrics;
  return (
    <div class="run">
      <h1>Operations</h1>
      <Problem error={pollError.value} />
      {now && (
        <>
          <section class="card" aria-labelledby="load-title">
            <h2 id="load-title">Load, the last five minutes</h2>
            <div class="plots">
              <Sparkline title="Queue" unit="requests" values={levels(seen, "refine_queue_depth")} />
              <Sparkline
                title="Running"
                unit="requests"
                values={levels(seen, "refine_running_requests")}
              />
              <Sparkline
                title="Answers"
                unit="tokens a second"
                values={rates(seen, "refine_generated_tokens_total")}
              />
              <Sparkline
                title="Rollouts"
                unit="tokens a second"
                values={rates(seen, "refine_rollout_tokens_total")}
              />
              <Sparkline
                title="Requests"
                unit="a second"
                values={rates(seen, "refine_requests_total")}
              />
            </div>
          </section>
          <section class="card" aria-labelledby="running-title">
            <h2 id="running-title">Adaptations in work</h2>
            <RunningTable adaptations={running.value} />
          </section>
          <section class="card" aria-labelledby="memory-title">
            <h2 id="memory-title">Memory</h2>
            <MemoryBar metrics={now} />
          </section>
          <section class="card" aria-labelledby="totals-title">
            <h2 id="totals-title">Since the server started</h2>
            <Totals metrics={now} />
          </section>
        </>
      )}
    </div>
  );
}

function Totals({ metrics }: { metrics: Metrics }) {
  const write = (value: number | null, form: (value: number) => string) =>
    value === null ? "–" : form(value);
  const figures: readonly (readonly [string, string])[] = [
    ["Answers", write(total(metrics, "refine_answers_total"), measured)],
    ["Mean wait in the queue", write(meanOf(metrics, "refine_queue_seconds"), seconds)],
    ["Mean time to first token", write(meanOf(metrics, "refine_time_to_first_token_seconds"), seconds)],
    ["Mean adaptation", write(meanOf(metrics, "refine_adapt_seconds"), seconds)],
    ["Mean reward", write(meanOf(metrics, "refine_reward"), measured)],
    [
      "Adaptations found again",
      write(
        shareOf(metrics, "refine_adaptation_cache_hits_total", "refine_adaptation_cache_misses_total"),
        percent,
      ),
    ],
    [
      "Documents found again",
      write(
        shareOf(metrics, "refine_document_cache_hits_total", "refine_document_cache_misses_total"),
        percent,
      ),
    ],
    ["Store", write(total(metrics, "refine_store_bytes"), bytes)],
  ];
  return (
    <dl class="figures">
      {figures.map(([name, value]) => (
        <div key={name}>
          <dt>{name}</dt>
          <dd>{value}</dd>
        </div>
      ))}
    </dl>
  );
}
