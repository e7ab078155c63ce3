"""Calls of inference.py with a tiny checkpoint."""

from fixtures.jobs import copy_of_tiny, image_dir, inference, job, make_job, tiny
