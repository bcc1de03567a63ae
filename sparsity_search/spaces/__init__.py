"""Search spaces: what candidates are, and which are legal."""
