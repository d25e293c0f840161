"""What happened to the weights: figures for the log, and a ledger by id."""
