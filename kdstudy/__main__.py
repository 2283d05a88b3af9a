"""`python -m kdstudy` is the command line too."""

from kdstudy.cli import main

main()
