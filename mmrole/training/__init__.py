"""Trains Qwen-VL on records of MMRole: reads and encodes samples, plans steps, builds tree batches, sums their loss.

`samples`, `encoding` and `planning` work before any model is loaded; `batches` and `loss` need torch.
"""
