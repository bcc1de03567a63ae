"""What a profile is: units, counts of zeros, the budget, patterns, measured scores."""
