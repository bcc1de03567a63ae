"""The jobs behind the commands: each is a function that a program can call as well."""
