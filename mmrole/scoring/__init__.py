"""Scores agents on MMRole-Eval: reviews by the reward model, results, statistics and the report."""
