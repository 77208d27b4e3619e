"""The ledger: the durable record of calls, one row each, in SQLite. Says how much was used and spent."""
