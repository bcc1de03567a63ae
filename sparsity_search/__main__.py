"""`python -m sparsity_search` is the command line."""

from sparsity_search.cli.main import main

main()
