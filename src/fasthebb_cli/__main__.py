"""`python -m fasthebb_cli`, the same as `fasthebb`."""

from fasthebb_cli.cli import main

if __name__ == "__main__":
    main()
