"""Plans: what a search does step by step, and what each step costs and brings, as data files."""
