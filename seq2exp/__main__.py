"""`python -m seq2exp`, the program `seq2exp`."""

from seq2exp.cli import main

main()
