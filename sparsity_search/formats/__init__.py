"""File formats of profiles: what other tools write and read, to and from exact counts."""
