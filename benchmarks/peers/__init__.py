"""DPO training beside other trainers: `make bench`, or `python -m benchmarks.peers`."""
