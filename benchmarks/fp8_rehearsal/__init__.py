"""What FP8 would do to each objective, rehearsed in fp32 arithmetic on any machine."""
