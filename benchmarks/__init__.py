"""The benchmarks: one file a question; python -m benchmarks runs them all, or those that are named."""
