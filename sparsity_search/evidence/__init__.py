"""What is known of a weight before it is pruned, and the variants that pruning makes."""
