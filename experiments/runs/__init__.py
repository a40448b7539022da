"""One run: what it is, its identity, the pipeline that carries it out, its cost and its failures."""
