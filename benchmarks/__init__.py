"""Speed and quality, measured: every bench prints one JSON object as its last line with --json."""
