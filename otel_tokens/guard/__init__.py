"""The guard: decides before a call is sent whether its budgets allow it, and charges them when it has ended."""
