"""What the verbs of the command line do that belongs to no single room."""
