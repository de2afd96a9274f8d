"""The two ops of a LaCT layer (arXiv 2505.23884): read a SwiGLU memory; the gradient of a write.

The memory of a (request, head) is an MLP, f(x) = w1 (silu(w0 x) * (w2 x)). Within a chunk every
query is read from the memory as it was before the chunk; then one gradient, summed over the chunk's
keys, rewrites it. Reading and writing are two ops because they happen at different times: a chunk
is read as its tokens come, and written when the first token after it arrives.
"""
