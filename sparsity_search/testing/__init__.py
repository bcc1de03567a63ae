"""Contract suites that every plugin passes, tiny random models, and toy problems."""

from sparsity_search.utils.extras import require

require("sparsity_search.testing", "testing", "pytest", "tokenizers")
