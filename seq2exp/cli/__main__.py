"""`python -m seq2exp.cli`."""

from seq2exp.cli import main

main()
