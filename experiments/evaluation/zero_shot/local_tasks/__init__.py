"""Zero-shot tasks on files of the data folder: an lm-eval YAML each, and `local.py`, which reads the files."""
