"""Sensitivities: what each unit loses at each level. One file a method."""
