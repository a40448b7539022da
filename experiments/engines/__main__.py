"""`python -m experiments.engines`: fetch llama.cpp's CPU library into the cache."""

from experiments.common.console import console, set_up
from experiments.common.errors import run_cli
from experiments.engines import library


def main() -> None:
    """Fetch the library, and say where it is."""
    set_up()
    console.print(f"llama.cpp {library.RELEASE} is in {library.fetch()}", soft_wrap=True)


if __name__ == "__main__":
    run_cli(main)
