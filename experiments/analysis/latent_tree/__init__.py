"""Hierarchical data from a tree of latents, and whether the layers of a transformer find its levels.

JoMA (arXiv 2310.00535) trains on texts whose tokens come from a tree of binary latents below a class, and
looks for hidden units of the MLP that follow a latent: those of the lowest level in the first layer, of the
next in the second. `tree` draws texts, `learned` trains and correlates, and
`python -m experiments.analysis.latent_tree` prints the table.
"""
