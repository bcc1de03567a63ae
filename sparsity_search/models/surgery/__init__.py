"""Changes of a model's shape: removal and merging of parts."""
