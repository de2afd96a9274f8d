"""Reports of a run: JSON, Markdown, one self-contained HTML page, and plots as PNG files."""
