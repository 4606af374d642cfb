"""`nemo-gdpo label`: ask people and judges about pairs, and keep their answers in a ledger."""
