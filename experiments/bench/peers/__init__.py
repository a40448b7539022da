"""Other packages, timed with ours in separate processes."""
