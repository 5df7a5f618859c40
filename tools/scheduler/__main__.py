"""`python -m tools.scheduler COMMAND`: which device trains what on a network of uneven links."""

from tools.command_line import run_command

COMMANDS = {
    "schedule": ("tools.scheduler.schedule", "find the layout of a job on a network, its cost, time and map"),
    "probe": ("tools.scheduler.probe", "measure the links of a running cluster and write them as a scenario"),
}

if __name__ == "__main__":
    run_command("python -m tools.scheduler", __doc__, COMMANDS)
