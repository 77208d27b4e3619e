"""Reports: what a ledger says, as a table, JSON or CSV."""
