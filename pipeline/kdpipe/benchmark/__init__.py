"""Measuring and comparing students: accuracy, gap recovered, latency, size, and which one to ship.

Everything here works on arrays, modules and plain values; the caller reads runs and stores.
"""
