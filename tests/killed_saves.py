"""Training runs that are killed while they save a checkpoint, for `test_killed_saves.py`: not a test itself.

Usage: killed_saves.py FOLDER '["optimizer.pt", ...]' NUM_PROCESSES

Every run is a fork of this process, which trains nothing itself: imports are paid once.
"""

import json
import os
import shutil
import signal
import socket
import sys
import traceback
from pathlib import Path

import torch
import transformers.modeling_utils
from transformers import TrainerState


torch.set_num_threads(1)
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

from test_trainer import make_trainer  # noqa: E402

from sgma_hf.checkpoints import last_complete_checkpoint  # noqa: E402


KILLED_AT = "checkpoint-4"


def die_in(path, write, name):
    """Write a file; if it is the one to die in, leave half of it and die as if the power went."""
    write()
    path = Path(path)
    if path.name == name and (path.parent.name == KILLED_AT or KILLED_AT in path.parts):
        os.truncate(path, path.stat().st_size // 2)
        os.kill(os.getpid(), signal.SIGKILL)


def kill_in(name):
    """Patch whatever writes a file of a checkpoint."""
    save, write_text, save_to_json = torch.save, Path.write_text, TrainerState.save_to_json
    save_file, rmtree = transformers.modeling_utils.safe_save_file, shutil.rmtree
    torch.save = lambda value, path, *args, **kwargs: die_in(path, lambda: save(value, path, *args, **kwargs), name)
    Path.write_text = lambda path, *args, **kwargs: die_in(path, lambda: write_text(path, *args, **kwargs), name)
    TrainerState.save_to_json = lambda state, path: die_in(path, lambda: save_to_json(state, path), name)
    transformers.modeling_utils.safe_save_file = lambda tensors, path, **kwargs: die_in(
        path, lambda: save_file(tensors, path, **kwargs), name
    )

    def remove_half(path, *args, **kwargs):
        if name == "rotation" and Path(path).name == "checkpoint-2":
            (Path(path) / "optimizer.pt").unlink()
            os.kill(os.getpid(), signal.SIGKILL)
        rmtree(path, *args, **kwargs)

    shutil.rmtree = remove_half


def train(folder, *, killed_in=None, resume=None, num_processes=1, **options):
    """Six steps in two epochs, saved after every second; the first process leaves the parameters."""
    if killed_in is not None:
        kill_in(killed_in)
    trainer = make_trainer(
        folder, per_device_train_batch_size=2 // num_processes, save_strategy="steps", save_steps=2, **options
    )
    assert trainer.accelerator.num_processes == num_processes
    trainer.train(resume_from_checkpoint=resume)
    if trainer.is_world_process_zero():
        torch.save(trainer.model.state_dict(), Path(folder) / "parameters.pt")
    trainer.accelerator.end_training()


def run(folder, *, num_processes=1, **options):
    """Train in forks of this process, and return their exit codes, negative for signals."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    children = []
    for rank in range(num_processes):
        child = os.fork()
        if child == 0:
            if num_processes > 1:
                values = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": num_processes, "MASTER_PORT": port}
                os.environ |= {name: str(value) for name, value in values.items()} | {"MASTER_ADDR": "127.0.0.1"}
            code = 1
            try:
                train(folder, num_processes=num_processes, **options)
                code = 0
            except BaseException:  # nothing of the parent may go on here
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                os._exit(code)
        children.append(child)
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def main():
    folder, names, num_processes = Path(sys.argv[1]), json.loads(sys.argv[2]), int(sys.argv[3])
    assert run(folder / "whole", num_processes=num_processes) == [0] * num_processes
    report = {}
    for name in names:
        output_dir = folder / name
        options = {"num_processes": num_processes, "killed_in": name}
        if name == "rotation":
            options["save_total_limit"] = 1
        elif name == "again":  # over a checkpoint that an earlier attempt left
            shutil.copytree(folder / "whole" / "checkpoint-2", output_dir / "checkpoint-2")
            shutil.copytree(folder / "whole" / KILLED_AT, output_dir / KILLED_AT)
            options |= {"resume": str(output_dir / "checkpoint-2"), "killed_in": "optimizer.pt"}
        codes = run(output_dir, **options)
        last = last_complete_checkpoint(output_dir)
        report[name] = {"codes": codes, "last": last and Path(last).name}
        report[name]["resumed"] = run(output_dir, resume=True, num_processes=num_processes)
    (folder / "report.json").write_text(json.dumps(report))


if __name__ == "__main__":
    main()
