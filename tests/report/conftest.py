from tests.helpers.run_fixtures import finished, record, run_dir

__all__ = ["finished", "record", "run_dir"]
