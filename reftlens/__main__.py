"""`python -m reftlens`: the command line."""

from reftlens.cli import app

if __name__ == "__main__":
    app()
