"""Reservations: what was set aside for a call, from its admission to its settlement, release or expiry."""
