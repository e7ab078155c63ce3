"""Calls of inference.py with a tiny checkpoint, whose answers are reviewed."""

from fixtures.jobs import copy_of_tiny, image_dir, inference, job, make_job, tiny
