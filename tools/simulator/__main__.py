"""`python -m tools.simulator COMMAND`: predict, tables, evaluate, fit, plan, heterogeneous."""

from tools.command_line import run_command

COMMANDS = {
    "predict": ("tools.simulator.predict", "the time of a step by part, its timeline, and memory by part"),
    "tables": ("tools.simulator.tables", "add predictions to every row of a published table"),
    "evaluate": ("tools.simulator.evaluate", "errors against published figures, in-sample and leaving tables out"),
    "fit": ("tools.simulator.fit", "make the calibration again, or anchor a cluster on two measured runs"),
    "heterogeneous": ("tools.simulator.heterogeneous", "times of published systems on uneven networks"),
    "plan": ("tools.simulator.plan", "rank the layouts and schemes of a model on a cluster"),
}

if __name__ == "__main__":
    run_command("python -m tools.simulator", __doc__, COMMANDS)
