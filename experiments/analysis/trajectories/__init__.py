"""Drop and rebound over a training: curves of attention entropy and of stable rank, layer by layer.

JoMA (arXiv 2310.00535) says that with a nonlinear MLP attention first grows sparse and then wider again, and
with a linear one only sparser; and that the stable rank of the MLP's lower matrix does the same. `bounces`
reads it off the rows of a training at several steps; `python -m experiments.analysis.trajectories` prints it.
"""
