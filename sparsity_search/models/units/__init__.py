"""Kinds of units: single weights of a decoder block, or structures of several layers."""
