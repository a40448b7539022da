"""How fast is it, against what others have and against what this machine could do: `make bench`, or `python -m experiments.bench`."""
