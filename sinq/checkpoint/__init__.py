"""Models on disk: our folder, Hugging Face checkpoints as a source, streaming from one to the other."""
