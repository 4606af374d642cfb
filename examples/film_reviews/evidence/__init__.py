"""The experiment: arms, pairs, training, measuring, and what came of it."""
