"""`python -m harness.cli` is `flowrace`."""

from harness.cli.main import main

main()
