"""Log-probs beside full logits and other chunked heads: `python -m benchmarks.heads`."""
