"""A transformers model in this library: targets, blocks, decoder graph, inserted modules, edits, the walk."""
