"""What is removed from a decoder block: single weights, or structures of several layers."""
