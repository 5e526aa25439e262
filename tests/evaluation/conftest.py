from report_run import run_folder

__all__ = ["run_folder"]
