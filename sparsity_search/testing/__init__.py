"""Contract suites that every plugin passes, tiny random models, and toy problems."""
