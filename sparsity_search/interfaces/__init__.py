"""What plugins are: one base class a kind, in one file each."""
