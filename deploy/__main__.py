"""`python -m deploy detect …`"""

from deploy.cli import main
from deploy.command_line import run

if __name__ == "__main__":
    run(main, "python -m deploy")
