"""The supernet: ready-made pruned variants of every unit, and a model that switches among them."""
