"""Run one experiment, or a sweep with `-m`: `python run.py method=sinq bits=3`. Options are in `conf/`."""

from experiments.command import main

if __name__ == "__main__":
    main()
