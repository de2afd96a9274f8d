"""The example in the README runs."""

import re
from pathlib import Path

README = Path(__file__).parents[2] / "kernels" / "README.md"


def test_the_example_runs() -> None:
    (example,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    exec(compile(example, str(README), "exec"), {})
