"""`python -m paella` is the command `paella`."""

from paella.cli import main

main()
