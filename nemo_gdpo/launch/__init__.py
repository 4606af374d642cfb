"""How a command line becomes processes: verbs, ranks, Slurm, signals, failures. No torch."""
