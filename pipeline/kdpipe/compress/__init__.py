"""Smaller networks from trained ones: channels pruned, layers factored, weights in int8."""
