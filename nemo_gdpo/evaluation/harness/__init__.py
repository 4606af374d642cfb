"""Other benchmarks: lm-eval's tasks, and the files that AlpacaEval and MT-Bench read."""
