"""One training run for `test_distributed.py`, started once per process: not a test itself.

Usage: distributed_training.py OUTPUT_DIR '{"TrainingArguments": "as JSON", "kill_at_step": 3, "rows": 8}'
"""

import json
import os
import signal
import sys

import torch
from transformers import TrainerCallback


torch.set_num_threads(1)
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

from test_trainer import make_rows, make_trainer  # noqa: E402


class KillAtStep(TrainerCallback):
    """Dies as if the power went, in the middle of a step."""

    def __init__(self, step):
        self.step = step

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


def main():
    output_dir, options = sys.argv[1], json.loads(sys.argv[2])
    kill_at_step = options.pop("kill_at_step", None)
    resume = options.pop("resume", None)
    rows = make_rows(options.pop("rows", 7))
    # an odd number of rows: one process runs out of them a batch before the other
    for row in rows[::2]:  # every second batch of one row lacks height: no row of that process has it
        row["dsm"] = None
    trainer = make_trainer(output_dir, rows=rows, **options)
    trainer.model.decode_head.dropout.p = 0.0  # its random numbers depend on how rows are dealt out
    if kill_at_step is not None:
        trainer.add_callback(KillAtStep(kill_at_step))
    trainer.train(resume_from_checkpoint=resume)
    metrics = trainer.evaluate()
    if trainer.is_world_process_zero():
        torch.save(trainer.model.state_dict(), os.path.join(output_dir, "parameters.pt"))
        summary = {
            "world_size": trainer.accelerator.num_processes,
            "metrics": {name: value for name, value in metrics.items() if "miou" in name},
            "log": [entry for entry in trainer.state.log_history if "loss_sgf" in entry],
            "statistics": {name: values.tolist() for name, values in trainer.statistics.sums.items()},
            "dynamics": trainer.dynamics.epochs,
        }
        with open(os.path.join(output_dir, "summary.json"), "w") as file:
            json.dump(summary, file)
    trainer.accelerator.wait_for_everyone()
    trainer.accelerator.end_training()


if __name__ == "__main__":
    main()
