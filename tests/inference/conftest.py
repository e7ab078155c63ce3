"""Calls of inference.py with a tiny checkpoint."""

from fixtures.desk import desk
from fixtures.jobs import copy_of_tiny, image_dir, inference, job, make_job, tiny
from fixtures.servers import server
