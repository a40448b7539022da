"""Speed compared with other packages and with the limits of the machine.

Run `make bench`, or `python -m experiments.bench`.
"""
