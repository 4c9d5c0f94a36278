"""python -m pgqueuetopia: the command line, also where its script is not on the path."""

from pgqueuetopia.cli import main

if __name__ == "__main__":
    main()
