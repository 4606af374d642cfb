"""What a run would need and take, computed from sizes: memory, FLOPs, time. Nothing is measured.

Plain numbers in and out, without torch: checks of a configuration and `nemo-gdpo plan` use the same
estimate.
"""
