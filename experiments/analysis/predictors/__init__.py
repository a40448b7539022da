"""Predictors of layers that quantize badly: does a number of the dense model tell beforehand?

The rows of `evaluation=layers` have, for each layer, the output error of the compressed model, and of the
dense one the stable rank of the matrix and the entropy of its block's attention. `ranking` correlates their
ranks; `python -m experiments.analysis.predictors` prints the correlations of a run.
"""
