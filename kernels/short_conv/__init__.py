"""The causal depthwise convolution over a few tokens in linear-attention layers."""
