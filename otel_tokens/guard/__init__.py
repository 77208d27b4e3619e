"""The guard: may this call run, and what did it use. Declarations, decisions, actions and forecasts."""
