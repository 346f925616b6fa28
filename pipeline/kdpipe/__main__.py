"""``python -m kdpipe`` is the ``kdpipe`` command."""

from kdpipe.stages.cli import main

if __name__ == "__main__":
    main()
