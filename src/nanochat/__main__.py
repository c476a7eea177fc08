"""`python -m nanochat` is `nanochat`."""

from nanochat.cli import main

if __name__ == "__main__":
    main()
