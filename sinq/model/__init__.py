"""A transformers model as this library sees it: targets, blocks, decoder graph, the modules put in, edits, the walk."""
