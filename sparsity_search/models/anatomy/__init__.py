"""What a model consists of: blocks, linears, roles, prunable units."""
