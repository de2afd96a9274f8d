"""Benchmark of the Triton kernels: errors, registers, CPU times."""
