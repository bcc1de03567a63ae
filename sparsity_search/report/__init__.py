"""The report of a run: tables, plots and one HTML file, from what was recorded."""

from sparsity_search.report.html import write_report
from sparsity_search.report.record import RunRecord, load_measurements
from sparsity_search.report.redact import redact, redact_url

__all__ = ["RunRecord", "load_measurements", "redact", "redact_url", "write_report"]
