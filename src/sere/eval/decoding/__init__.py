"""Greedy decoding in steps of B rows: prefill, continuous batching, and static batching for other caches."""
