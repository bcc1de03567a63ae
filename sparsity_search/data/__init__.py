"""Text sources and the token sequences drawn from them."""
