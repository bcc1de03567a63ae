"""The base classes of plugins, one file a kind."""
