"""The causal depthwise convolution over a few tokens that gated linear attention relies on."""
