"""The search loop, and the claims of several workers on it."""
