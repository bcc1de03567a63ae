"""The supernet: pruned variants of every unit, and a model that switches between them."""
