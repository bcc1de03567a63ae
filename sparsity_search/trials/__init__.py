"""What was measured: histories, ladders of rungs, and their store."""
