"""The report of an evaluation: the page with its plots, and the table on the console."""
