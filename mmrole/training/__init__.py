"""Trains Qwen-VL on records of MMRole: reads and encodes samples, packs steps, builds tree batches, sums their loss.

`samples`, `encoding` and `packing` work before any model is loaded; `batches` and `loss` need torch.
"""
