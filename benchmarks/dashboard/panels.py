"""What the dashboard shows: sections of panels, and the queries of each."""

from dataclasses import dataclass
from typing import Literal

SERVER = 'job=~"$job", instance=~"$instance"'
"""Selects the servers that the viewer chose; ``$…`` are variables of the dashboard."""
WORK = f'{SERVER}, endpoint!~"/health/.*|/metrics"'
"""Selects requests that are no probes."""

Unit = Literal["short", "reqps", "s", "bytes", "percentunit", "bool_yes_no"]
"""Grafana's name of the unit of a panel's values."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Query:
    """One query of a panel."""

    expression: str
    """In PromQL, with the dashboard's variables and ``$__rate_interval``."""
    legend: str
    """Name of a series, with labels in double braces."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Panel:
    """A graph over time, or a number."""

    title: str
    description: str
    queries: tuple[Query, ...]
    unit: Unit = "short"
    is_number: bool = False
    """Whether the newest value is shown as a number."""
    is_stacked: bool = False
    """Whether the series are parts of a whole."""


def _rate(metric: str, by: str, more: str = "") -> str:
    return f"sum by ({by}) (rate({metric}{{{SERVER}{more}}}[$__rate_interval]))"


def _mean(histogram: str, by: str = "") -> str:
    rates = (_rate(f"{histogram}_{part}", by) for part in ("sum", "count"))
    return " / ".join(rates)


def _quantiles(histogram: str, *quantiles: float, by: str = "") -> tuple[Query, ...]:
    labels = ", ".join(filter(None, ("le", by)))
    prefix = f"{{{{{by}}}}} " if by else ""
    return tuple(
        Query(
            expression=f"histogram_quantile({q}, {_rate(f'{histogram}_bucket', labels)})",
            legend=f"{prefix}p{round(100 * q)}",
        )
        for q in quantiles
    )


def _series(metric: str, legend: str, more: str = "") -> Query:
    return Query(expression=f"sum({metric}{{{SERVER}{more}}})", legend=legend)


def _by(metric: str, by: str) -> Query:
    return Query(expression=f"sum by ({by}) ({metric}{{{SERVER}}})", legend=f"{{{{{by}}}}}")


def _rates_by(metric: str, by: str) -> Query:
    legend = " ".join(f"{{{{{label}}}}}" for label in by.split(", "))
    return Query(expression=_rate(metric, by), legend=legend)


def _number(title: str, description: str, expression: str, unit: Unit = "short") -> Panel:
    query = Query(expression=expression, legend="")
    return Panel(title=title, description=description, queries=(query,), unit=unit, is_number=True)


OVERVIEW = (
    _number(
        "Servers ready",
        "Servers that accept requests. Fewer than there should be: RefineNotReady.",
        f"sum(refine_ready{{{SERVER}}})",
    ),
    _number(
        "Isolation violations",
        "Failed isolation checks. Anything but 0: RefineIsolationViolated.",
        f"sum(refine_isolation_violations_total{{{SERVER}}})",
    ),
    _number(
        "Requests",
        "Requests a second, without probes.",
        f"sum(instance:refine_requests:rate5m{{{SERVER}}})",
        "reqps",
    ),
    _number(
        "Errors",
        "Share of requests that ended with a 5xx status.",
        f"max(instance:refine_errors:ratio_rate5m{{{SERVER}}})",
        "percentunit",
    ),
    _number(
        "Too many requests",
        "Share of requests that were refused with 429.",
        f"max(instance:refine_too_many_requests:ratio_rate5m{{{SERVER}}})",
        "percentunit",
    ),
    _number(
        "Waiting",
        "Estimated time that the work in the queue takes.",
        f"max(refine_waiting_seconds{{{SERVER}}})",
        "s",
    ),
)

REQUESTS = (
    Panel(
        title="Requests by endpoint",
        description="Requests a second, without probes.",
        queries=(
            Query(
                expression=f"sum by (endpoint) (rate(refine_requests_total{{{WORK}}}"
                "[$__rate_interval]))",
                legend="{{endpoint}}",
            ),
        ),
        unit="reqps",
        is_stacked=True,
    ),
    Panel(
        title="Requests by status",
        description="Requests a second, without probes. 499: the client left before the end.",
        queries=(
            Query(
                expression=f"sum by (status) (rate(refine_requests_total{{{WORK}}}"
                "[$__rate_interval]))",
                legend="{{status}}",
            ),
        ),
        unit="reqps",
        is_stacked=True,
    ),
    Panel(
        title="Refused requests by reason and key",
        description="Requests a second that were refused; key '-': no valid key.",
        queries=(_rates_by("refine_rejections_total", "reason, key"),),
        unit="reqps",
        is_stacked=True,
    ),
    Panel(
        title="Duration of answers",
        description="Time to the last byte of the responses of POST /v1/answers.",
        queries=tuple(
            Query(
                expression=f"histogram_quantile({q}, sum by (le) (rate("
                f'refine_request_seconds_bucket{{{SERVER}, endpoint="/v1/answers"}}'
                "[$__rate_interval])))",
                legend=f"p{round(100 * q)}",
            )
            for q in (0.5, 0.95, 0.99)
        ),
        unit="s",
    ),
)

ANSWERS = (
    Panel(
        title="Time to first token",
        description="From the submission to the first token, by the weights that answer.",
        queries=_quantiles("refine_time_to_first_token_seconds", 0.5, 0.95, by="answered_by"),
        unit="s",
    ),
    Panel(
        title="Time between tokens",
        description="Between two decoded tokens of an answer.",
        queries=_quantiles("refine_inter_token_seconds", 0.5, 0.95, 0.99),
        unit="s",
    ),
    Panel(
        title="Where the time goes",
        description="Mean time of each phase of a request.",
        queries=(
            Query(expression=_mean("refine_queue_seconds"), legend="queue"),
            Query(expression=_mean("refine_prefill_seconds"), legend="read"),
            Query(expression=_mean("refine_adapt_seconds"), legend="adapt"),
            Query(expression=_mean("refine_decode_seconds"), legend="decode"),
        ),
        unit="s",
        is_stacked=True,
    ),
    Panel(
        title="Answers by weights",
        description="Answers a second by the weights that answered.",
        queries=(_rates_by("refine_answers_total", "answered_by"),),
        unit="reqps",
        is_stacked=True,
    ),
    Panel(
        title="Base weights kept, by reason",
        description="Adaptations a second whose answers come from the base weights.",
        queries=(_rates_by("refine_kept_base_total", "reason"),),
        unit="reqps",
        is_stacked=True,
    ),
    Panel(
        title="Time limits reached",
        description="Requests a second that reached their time limit, by what they were doing.",
        queries=(_rates_by("refine_deadline_misses_total", "stage"),),
        unit="reqps",
        is_stacked=True,
    ),
)

LOAD = (
    Panel(
        title="Running and waiting requests",
        description="Requests that the model works on in turns, and those in the queue.",
        queries=(
            _series("refine_running_requests", "running"),
            _series("refine_queue_depth", "waiting"),
        ),
    ),
    Panel(
        title="Waiting work",
        description="Estimated time that the work in the queue takes.",
        queries=(_by("refine_waiting_seconds", "instance"),),
        unit="s",
    ),
    Panel(
        title="Waiting tokens",
        description="Tokens of the documents, queries and prompts in the queue.",
        queries=(_by("refine_waiting_tokens", "instance"),),
    ),
    Panel(
        title="Busy",
        description="Share of time in which the model works.",
        queries=(_rates_by("refine_busy_seconds_total", "instance"),),
        unit="percentunit",
    ),
    Panel(
        title="Tokens a second",
        description="Tokens read by kind, generated in answers, and sampled in rollouts.",
        queries=(
            _rates_by("refine_prompt_tokens_total", "kind"),
            Query(expression=_rate("refine_generated_tokens_total", ""), legend="generated"),
            Query(expression=_rate("refine_rollout_tokens_total", ""), legend="rollouts"),
        ),
    ),
    Panel(
        title="Batch size",
        description="Mean number of requests in one batch, by operation.",
        queries=(
            Query(expression=_mean("refine_batch_size", "operation"), legend="{{operation}}"),
        ),
    ),
)

# There are no means of what may be negative: OpenMetrics leaves the sums of such histograms out.
ADAPTATION = (
    Panel(
        title="Reward of rollouts",
        description="Mean reward of the rollouts of a step, by share of the steps.",
        queries=_quantiles("refine_reward", 0.1, 0.5, 0.9),
    ),
    Panel(
        title="Change of the loss",
        description="Change of the next-token loss through an adaptation, in nats per token.",
        queries=_quantiles("refine_ntp_loss_delta", 0.1, 0.5, 0.9),
    ),
    Panel(
        title="Duration of a step",
        description="Duration of single adaptation steps.",
        queries=_quantiles("refine_adapt_step_seconds", 0.5, 0.95),
        unit="s",
    ),
    Panel(
        title="Draft tokens a second",
        description="Tokens drafted from the prompt, where a request decodes greedily and alone, "
        "and those that decoding accepted.",
        queries=(
            Query(expression=_rate("refine_drafted_tokens_total", ""), legend="drafted"),
            Query(expression=_rate("refine_accepted_tokens_total", ""), legend="accepted"),
        ),
    ),
)

MEMORY = (
    Panel(
        title="Memory by kind",
        description="What the process's memory is spent on.",
        queries=(_by("refine_memory_bytes", "kind"),),
        unit="bytes",
        is_stacked=True,
    ),
    Panel(
        title="Memory and budget",
        description="Memory of the process, and the most that it may take.",
        queries=(
            _series("process_resident_memory_bytes", "taken"),
            _series("refine_memory_budget_bytes", "budget"),
        ),
        unit="bytes",
    ),
    Panel(
        title="Use of limits",
        description="Share of their limits that kinds of memory and the store take.",
        queries=(
            Query(
                expression=f"max by (kind) (instance:refine_memory_use:ratio{{{SERVER}}})",
                legend="{{kind}}",
            ),
            Query(expression=f"max(instance:refine_store_use:ratio{{{SERVER}}})", legend="store"),
        ),
        unit="percentunit",
    ),
    Panel(
        title="Processor",
        description="CPU seconds of the process a second.",
        queries=(_rates_by("process_cpu_seconds_total", "instance"),),
    ),
)

KEPT = (
    Panel(
        title="Kept adaptations",
        description="Adaptations that the server keeps, by status.",
        queries=(_by("refine_adaptations", "status"),),
        is_stacked=True,
    ),
    Panel(
        title="Found again",
        description="Share of adaptations and documents that did not have to be made or read.",
        queries=tuple(
            Query(
                expression=f"{_rate(f'refine_{cache}_hits_total', '')} / "
                f"({_rate(f'refine_{cache}_hits_total', '')} + "
                f"{_rate(f'refine_{cache}_misses_total', '')})",
                legend=legend,
            )
            for cache, legend in (
                ("adaptation_cache", "adaptations"),
                ("document_cache", "documents"),
            )
        ),
        unit="percentunit",
    ),
    Panel(
        title="Dropped adaptations",
        description="Adaptations a second that made room for others.",
        queries=(
            Query(
                expression=_rate("refine_adaptation_cache_evictions_total", ""),
                legend="from memory",
            ),
            Query(expression=_rate("refine_store_evictions_total", ""), legend="from the store"),
        ),
    ),
    Panel(
        title="Store",
        description="Bytes of all adaptations in the store, and the most that they may take.",
        queries=(
            _series("refine_store_bytes", "taken"),
            _series("refine_store_limit_bytes", "limit"),
        ),
        unit="bytes",
    ),
    Panel(
        title="Store errors",
        description="Failed reads and writes a second, by operation.",
        queries=(_rates_by("refine_store_errors_total", "operation"),),
        is_stacked=True,
    ),
    Panel(
        title="Files and batches",
        description="Files, batches that have not ended, and requests of batches a second.",
        queries=(
            _series("refine_files", "files"),
            _series("refine_open_batches", "open batches"),
            Query(
                expression=_rate("refine_batch_requests_total", "outcome"),
                legend="{{outcome}} a second",
            ),
        ),
    ),
)

SECTIONS = {
    "Overview": OVERVIEW,
    "Requests": REQUESTS,
    "Answers": ANSWERS,
    "Load": LOAD,
    "Adaptation": ADAPTATION,
    "Memory": MEMORY,
    "Kept adaptations, store and batches": KEPT,
}
"""The panels of the dashboard by the heading above them."""
