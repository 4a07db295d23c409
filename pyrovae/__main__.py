"""`python -m pyrovae`: the command line."""

from pyrovae.cli import main

if __name__ == "__main__":
    main()
