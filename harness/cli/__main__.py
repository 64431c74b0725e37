"""Entry point of `python -m harness.cli`, which is `flowrace`."""

from harness.cli.main import main

main()
