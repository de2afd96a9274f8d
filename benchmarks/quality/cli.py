"""``refine-server bench examples``."""

from pathlib import Path

from refine_server.benchmarks.common.console import (
    Adapt,
    AsJson,
    Examples,
    ModelName,
    adapt_config_of,
    print_result,
)


def examples(
    model: ModelName = "smollm2",
    directory: Examples = Path("examples"),
    adapt: Adapt = "{}",
    as_json: AsJson = False,
) -> None:
    """Count right answers about the example documents: unadapted, next-token and REFINE."""
    from refine_server.benchmarks.quality.examples import ExamplesBench

    print_result(ExamplesBench(model, directory, adapt_config_of(adapt)).run(), as_json)
