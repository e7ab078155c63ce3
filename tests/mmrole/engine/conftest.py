"""A tiny random model, and drawn pictures."""

from fixtures.engine import generate_alone, make_model, paged, pictures, tokenizer
