"""How a verb is started and ended: signals, and failures as one line and an exit status."""
