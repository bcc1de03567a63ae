"""The data a pruner works from, and the pruned variants that it produces."""
