"""Other packages, timed beside ours in processes of their own."""
