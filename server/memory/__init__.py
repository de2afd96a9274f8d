"""The memory of the process: one budget, what it is spent on, and what the allocator keeps."""
