"""Models on disk: the sinq folder, Hugging Face checkpoints as a source, and streaming between the two."""
