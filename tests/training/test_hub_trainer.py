"""The trainer and a stand-in for the Hub: the whole story, and what every single push leaves."""

import re

import pytest
from hub_stand_in import CODE, WRITE_TOKEN, running_hub


pytestmark = pytest.mark.long


COMPLETE = CODE | {"README.md", "config.json", "model.safetensors", "preprocessor_config.json", "training_record.json"}
ROWS = """
import sys
import numpy as np
import torch
from sgma_hf import SgmaForSemanticSegmentation, SgmaImageProcessor, SgmaTrainer, SgmaTrainingArguments
from tiny_models import tiny_model

def make_rows(modalities, count=6, size=32):
    generator = np.random.default_rng(0)
    rows = []
    for index in range(count):
        label = np.kron(generator.integers(0, 3, (4, 4)), np.ones((8, 8))).astype(np.uint8)
        row = {"id": f"row{index}", "label": label}
        for name, channels in modalities.items():
            row[name] = generator.integers(0, 255, (size, size, channels)).astype(np.uint8)
        if index % 3 == 2:
            row[next(iter(modalities))] = None
        rows.append(row)
    return rows

def make_trainer(model, processor, output_dir, **changes):
    values = {
        "per_device_train_batch_size": 2, "learning_rate": 1e-3, "use_cpu": True, "disable_tqdm": True,
        "save_strategy": "steps", "save_steps": 2, "max_steps": 5, "seed": 5, "push_to_hub": True,
        "hub_always_push": True,
    }
    rows = make_rows(dict(zip(processor.modalities, processor.modality_channels)))
    args = SgmaTrainingArguments(output_dir, **values | changes)
    return SgmaTrainer(model, args, processing_class=processor, train_dataset=rows, eval_dataset=rows[:2])
"""
TRAIN = """
model = tiny_model(num_labels=3)
processor = SgmaImageProcessor(model.config.modalities, model.config.modality_channels)
trainer = make_trainer(
    model, processor, "story", hub_model_id="org/story", hub_private_repo=True, hub_token=TOKEN,
    eval_strategy="steps", eval_steps=4, save_total_limit=2,
)
trainer.train()
trainer.push_to_hub()
from safetensors.torch import save_file
inputs = processor({"rgb": make_rows({"rgb": 3})[0]["rgb"], "dsm": None, "sar": None})
with torch.no_grad():
    logits = model.eval()(**inputs).logits.contiguous()
weights = {"weights " + name: value for name, value in model.state_dict().items()}
save_file({**inputs, **weights, "logits": logits}, SHARED)

trainer = make_trainer(model, processor, "other", hub_model_id="org/all", hub_strategy="all_checkpoints", max_steps=2)
trainer.train()
trainer = make_trainer(model, processor, "last", hub_model_id="org/last", hub_strategy="checkpoint", max_steps=4)
trainer.train()
trainer = make_trainer(model, processor, "end", hub_model_id="org/end", hub_strategy="end", max_steps=2)
trainer.train()
"""
PREDICT = """
import numpy as np
import torch
from safetensors.torch import load_file
from transformers import AutoImageProcessor, AutoModel

processor = AutoImageProcessor.from_pretrained("org/story", trust_remote_code=True)
model = AutoModel.from_pretrained("org/story", trust_remote_code=True)
given = load_file(SHARED)
with torch.no_grad():
    outputs = model(given["pixel_values"], given["modality_mask"])
assert all(torch.equal(value, given["weights " + name]) for name, value in model.state_dict().items())
# Not to the last bit: kernels depend on where in memory the weights of a copy lie.
torch.testing.assert_close(outputs.logits, given["logits"])
label_map = processor.post_process_semantic_segmentation(outputs)[0]
assert label_map.shape == (32, 32) and label_map.max() < 3
missing = processor({"rgb": None, "dsm": np.ones((32, 32), np.float32), "sar": np.ones((32, 32, 2), np.float32)})
assert missing["modality_mask"].tolist() == [[False, True, True]]
with torch.no_grad():
    assert model(**missing).logits.isfinite().all()
"""
TUNE = """
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation

model = AutoModelForSemanticSegmentation.from_pretrained("org/story")
processor = AutoImageProcessor.from_pretrained("org/story")
before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
model.add_modality("thermal", channels=1, processor=processor)
trainer = make_trainer(model, processor, "tuned", hub_model_id="org/tuned", hub_private_repo=False)
trainer.train()
trainer.push_to_hub(license="cc-by-4.0")
changed = [name for name, tensor in before.items() if not torch.equal(tensor, model.state_dict()[name])]
assert changed

from huggingface_hub import snapshot_download

folder = snapshot_download("org/last", allow_patterns="last-checkpoint/*")
model = AutoModelForSemanticSegmentation.from_pretrained("org/last")
processor = AutoImageProcessor.from_pretrained("org/last")
trainer = make_trainer(model, processor, "resumed", push_to_hub=False)
trainer.train(resume_from_checkpoint=folder + "/last-checkpoint")
assert trainer.state.global_step == 5 and trainer.state.log_history[-1]["step"] == 5
"""
LOAD_TUNED = """
from transformers import AutoImageProcessor, AutoModel

processor = AutoImageProcessor.from_pretrained("org/tuned", trust_remote_code=True)
model = AutoModel.from_pretrained("org/tuned", trust_remote_code=True)
assert model.config.modalities == processor.modalities == ["rgb", "dsm", "sar", "thermal"]
inputs = processor({"thermal": np.full((32, 32), 90, np.uint8), "dsm": np.ones((32, 32), np.float32)})
with torch.no_grad():
    assert model(**inputs).logits.shape == (1, 3, 8, 8)
"""


@pytest.fixture(scope="module")
def story(tmp_path_factory):
    """Train with intermediate pushes, load elsewhere and predict, fine-tune with one more modality, load that."""
    folder = tmp_path_factory.mktemp("story")
    start = f"SHARED = {str(folder / 'shared.safetensors')!r}\nTOKEN = {WRITE_TOKEN!r}\n"
    with running_hub() as hub:
        trained = hub.run(start + ROWS + TRAIN, folder / "trains", token=None, HF_TOKEN=WRITE_TOKEN)
        card = hub.model("org/story").files()["README.md"].decode()
        (example,) = re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)
        predicted = hub.run(start + PREDICT + example, folder / "predicts", package=False)
        assert predicted.stdout.strip().endswith("torch.Size([256, 256])")
        tuned = hub.run(start + ROWS + TUNE, folder / "tunes")
        hub.run(start + PREDICT + LOAD_TUNED, folder / "loads", package=False)
        yield hub, folder, trained.stdout + trained.stderr + tuned.stdout + tuned.stderr


def test_train_push_load_predict_tune_push_load(story):
    hub, _, _ = story
    messages = hub.model("org/story").messages[1:]
    assert messages == [
        "Training in progress, step 2",
        "Training in progress, step 4",
        "Training in progress, step 5",
        "End of training",
    ]
    assert hub.model("org/story").private and not hub.model("org/tuned").private


def test_every_push_leaves_a_complete_repository(story):
    hub, _, _ = story
    for name in ("org/story", "org/tuned"):
        history = hub.model(name).history()
        assert len(history) == 4
        assert all(set(tree) == COMPLETE for tree in history), [sorted(set(tree) ^ COMPLETE) for tree in history]
        assert len({tree["model.safetensors"] for tree in history}) >= 3  # every push has its own weights


def test_a_card_states_scores_only_where_these_weights_were_measured(story):
    hub, _, _ = story
    cards = [tree["README.md"].decode() for tree in hub.model("org/story").history()]
    measured = ["model-index" in card for card in cards]
    assert measured == [False, True, True, True]  # evaluated at step 4, and at step 5, the last
    assert "have not been evaluated" in cards[0] and "mIoU, Last-1" in cards[3]
    tuned = hub.model("org/tuned").files()["README.md"].decode()
    assert "Fine-tuned from `org/story`" in tuned and "base_model: org/story" in tuned
    assert "license: cc-by-4.0" in tuned and "| `thermal` | 1 |" in tuned


def test_strategies_push_what_they_say(story):
    hub, _, _ = story
    whole = {"optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json", "modality_sampler.json"}
    last = {name.removeprefix("last-checkpoint/") for name in hub.model("org/last").files() if "/" in name}
    assert whole < last
    assert {name.partition("/")[0] for name in hub.model("org/all").files() if "/" in name} == {"checkpoint-2"}
    assert hub.model("org/end").history() == []  # train() alone does not push with "end"


def test_no_pickled_arguments_and_no_token_anywhere(story):
    hub, folder, output = story
    assert WRITE_TOKEN not in output
    for path in [path for path in folder.rglob("*") if path.is_file()]:
        assert path.name != "training_args.bin", path
        assert WRITE_TOKEN.encode() not in path.read_bytes(), path
    for repository in hub.repositories.values():
        for tree in repository.history():
            assert "training_args.bin" not in {name.rpartition("/")[2] for name in tree}
            assert not any(WRITE_TOKEN.encode() in content for content in tree.values())
    # checkpoint-2 was rotated away, perhaps while it was being pushed; no push leaves its own files behind
    assert {path.name for path in (folder / "trains" / "story").glob("checkpoint-*")} == {
        "checkpoint-4",
        "checkpoint-5",
    }
    assert not list((folder / "trains").rglob("_push-*"))
