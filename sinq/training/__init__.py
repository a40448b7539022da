"""Training of stored numbers: tuning a block after its layers are compressed."""
