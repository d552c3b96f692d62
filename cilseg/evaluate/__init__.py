"""Judging a model: confusion matrices, scores, the gate and its reports."""
