"""Orchestration: configuration, flow, tracking, promotion, reports, the command line.

Importing any part of this package first settles the process environment, because OpenMP, Prefect and MLflow
read it once, when they are imported.
"""

from pipelines.environment import prepare_environment

prepare_environment()
