"""Engines of other projects that run a model exported here: llama.cpp on a CPU."""
