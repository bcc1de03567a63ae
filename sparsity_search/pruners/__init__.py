"""Local pruners: one weight matrix and what is known of its inputs → pruned variants of it."""
