"""``python -m node``: the command line."""

from node.cli import main

if __name__ == "__main__":
    main(prog_name="marrow-node")
