"""``python -m jointopt`` is the ``jointopt`` command."""

from jointopt.cli import main

if __name__ == "__main__":
    main()
