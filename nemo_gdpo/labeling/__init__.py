"""Labels of pairs: what was asked, in which order, who answered what, and what follows from it."""
