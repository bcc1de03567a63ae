"""Given measured losses, the best profile: no model, only numbers."""
