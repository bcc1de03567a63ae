"""Running a model block by block, and what is gathered meanwhile."""
