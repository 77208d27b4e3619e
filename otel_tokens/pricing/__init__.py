"""Usage to money: the catalogue of prices, rate cards, the arithmetic, and a processor for foreign spans."""
