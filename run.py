"""Start the command line: `python run.py --help` lists the commands."""

from cli.main import COMMANDS, build_parser, leave, main, start

__all__ = ["COMMANDS", "build_parser", "leave", "main", "start"]

if __name__ == "__main__":
    start()
