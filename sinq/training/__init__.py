"""Training of what is stored: tuning a block after its layers are compressed."""
