"""Runs: train, save, resume, compare and report, whatever the task."""
