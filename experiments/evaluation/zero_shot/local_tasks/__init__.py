"""Zero-shot tasks on files of the data folder: one lm-eval YAML each; `local.py` reads the files."""
