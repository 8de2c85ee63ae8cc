"""Training runs for `test_distributed.py` and others, started once per process: not a test itself.

Usage: distributed_training.py '[{"output_dir": "...", "kill_at_step": 3, "TrainingArguments": "as JSON"}, ...]'
"""

import json
import os
import signal
import sys

import accelerate.state
import numpy as np
import torch
from accelerate import DistributedType
from transformers import TrainerCallback


torch.set_num_threads(1)
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

from test_trainer import MODALITIES, make_rows, make_trainer  # noqa: E402
from tiny_models import spread_weights  # noqa: E402

from sgma_hf import evaluation  # noqa: E402


class KillAtStep(TrainerCallback):
    """Dies as if the power went, in the middle of a step."""

    def __init__(self, step):
        self.step = step

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


def shard_on_cpu():
    """Let Accelerate shard on CPUs: it leaves FSDP to accelerators, though torch shards over gloo as well."""
    start = accelerate.state.PartialState.__init__

    def start_as_accelerator(self, *args, **kwargs):
        start(self, *args, **kwargs)
        if self.distributed_type == DistributedType.MULTI_CPU:
            self.distributed_type = DistributedType.MULTI_GPU

    accelerate.state.PartialState.__init__ = start_as_accelerator


def rows_with_gaps(count, idle):
    """An odd number of rows, so that one process runs out of them a batch before the other."""
    rows = make_rows(count)
    for row in rows[::2]:  # every second batch of one row lacks height: no row of that process has it
        row["dsm"] = None
    for index in idle:  # a process that has one of them alone has nothing to learn from
        if index % 2:
            rows[index]["label"] = np.full_like(rows[index]["label"], 255)
        else:
            rows[index] |= {**dict.fromkeys(MODALITIES), "dsm": np.full((32, 32), np.nan, dtype=np.float32)}
    return rows


def count_pixels(trainer):
    """Rows and confusion matrices of all combinations, of weights that no training made."""
    kept = {}
    summarize = evaluation._summarize

    def keep(counts, *args, **kwargs):
        kept["confusion"], kept["labelled"] = counts.confusion.tolist(), counts.labelled.tolist()
        return summarize(counts, *args, **kwargs)

    evaluation._summarize = keep
    model = spread_weights(make_trainer(trainer.args.output_dir).model)
    results = evaluation.evaluate_modality_combinations(
        model,
        trainer.processing_class,
        trainer.eval_dataset,
        batch_size=1,  # else a row's neighbours, and its last bits, depend on how rows are dealt out
        accelerator=trainer.accelerator,
    )
    evaluation._summarize = summarize
    return kept | {"results": results}


def train(*, output_dir, rows=7, idle=(), kill_at_step=None, resume=None, state_dict_type=None, **options):
    """Train and evaluate once; the first process leaves `summary.json` and `parameters.pt`."""
    os.makedirs(output_dir, exist_ok=True)
    if state_dict_type is not None:
        os.environ["FSDP_STATE_DICT_TYPE"] = state_dict_type
    trainer = make_trainer(output_dir, rows=rows_with_gaps(rows, idle), **options)
    trainer.model.decode_head.dropout.p = 0.0  # its random numbers depend on how rows are dealt out
    if kill_at_step is not None:
        trainer.add_callback(KillAtStep(kill_at_step))
    trainer.train(resume_from_checkpoint=resume)
    metrics = trainer.evaluate()
    model = trainer.whole_model()
    counted = count_pixels(trainer)
    trainer.save_model(os.path.join(output_dir, "final"))
    if trainer.is_world_process_zero():
        torch.save(model.state_dict(), os.path.join(output_dir, "parameters.pt"))
        summary = {
            "world_size": trainer.accelerator.num_processes,
            "distributed_type": str(trainer.accelerator.distributed_type),
            "metrics": {name: value for name, value in metrics.items() if "miou" in name},
            "log": [entry for entry in trainer.state.log_history if "loss_sgf" in entry],
            "statistics": {name: values.tolist() for name, values in trainer.statistics.sums.items()},
            "dynamics": trainer.dynamics.epochs,
            "counted": counted,
        }
        with open(os.path.join(output_dir, "summary.json"), "w") as file:
            json.dump(summary, file)
    trainer.accelerator.wait_for_everyone()
    return trainer


def main():
    if os.environ.get("ACCELERATE_USE_FSDP") == "true":
        shard_on_cpu()
    for options in json.loads(sys.argv[1]):
        trainer = train(**options)
    trainer.accelerator.end_training()


if __name__ == "__main__":
    main()
