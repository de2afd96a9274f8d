"""Jobs, their queue, whose turn it is, and what work is expected to cost."""
