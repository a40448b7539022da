"""Run one experiment, or with -m a sweep: `python run.py method=sinq bits=3`. Options are in `conf/`."""

from experiments.command import main

if __name__ == "__main__":
    main()
