"""Parts of a model: blocks, linear layers, roles, prunable units."""
