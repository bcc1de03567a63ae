"""Recoveries: one file or folder is one plugin, see `interfaces.recovery.Recovery`."""
