"""From an adapted state to text: prompts, sampling and stop strings."""
