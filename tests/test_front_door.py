"""`import sgma_hf` costs next to nothing, and all the same transformers knows the model."""

import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_models import tiny_config, tiny_model

import sgma_hf


pytestmark = pytest.mark.long


ROOT = Path(__file__).resolve().parents[1]
HEAVY = ["torch", "transformers", "numpy", "PIL", "datasets", "rasterio", "matplotlib", "huggingface_hub"]


def run_python(program, *arguments):
    """What a program prints, in a process that has imported nothing."""
    run = subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert run.returncode == 0, run.stderr
    return run.stdout.strip()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    model = tiny_model()
    model.save_pretrained(folder)
    config = tiny_config()
    sgma_hf.SgmaImageProcessor(config.modalities, config.modality_channels).save_pretrained(folder)
    return folder


def test_import_of_the_package_brings_nothing_along():
    assert run_python(f"import sys, sgma_hf; print([name for name in {HEAVY} if name in sys.modules])") == "[]"


def test_the_model_alone_brings_nothing_of_training_or_rasters_along():
    extra = ["datasets", "rasterio", "matplotlib", "evaluate", "torchvision", "pandas"]
    program = f"import sys; from sgma_hf import SgmaModel; print([name for name in {extra} if name in sys.modules])"
    assert run_python(program) == "[]"


LOAD = """
print(type(AutoConfig.from_pretrained(sys.argv[1])).__name__, type(AutoModel.from_pretrained(sys.argv[1])).__name__,
      type(AutoImageProcessor.from_pretrained(sys.argv[1])).__name__)
"""


@pytest.mark.parametrize(
    "imports",
    [
        "import sgma_hf; from transformers import AutoConfig, AutoImageProcessor, AutoModel",
        "from transformers import AutoConfig, AutoImageProcessor, AutoModel; import sgma_hf",
        "import sgma_hf, transformers.trainer; from transformers import AutoConfig, AutoImageProcessor, AutoModel",
        "from sgma_hf.model.image_processing_sgma import SgmaImageProcessor\n"
        "from transformers import AutoConfig, AutoImageProcessor, AutoModel",
        "from sgma_hf import SgmaTrainer\nfrom transformers import AutoConfig, AutoImageProcessor, AutoModel",
    ],
)
def test_auto_classes_know_the_model_in_every_order_of_imports(checkpoint, imports):
    loaded = run_python(f"import sys\n{imports}\n{LOAD}", checkpoint)
    assert loaded == "SgmaConfig SgmaForSemanticSegmentation SgmaImageProcessor"


@pytest.mark.parametrize(
    "imports",
    ["import sgma_hf; from transformers import pipeline", "from transformers import pipeline; import sgma_hf"],
)
def test_pipeline_knows_the_task(checkpoint, imports):
    program = f"import sys\n{imports}\nprint(type(pipeline(model=sys.argv[1])).__name__)"
    assert run_python(program, checkpoint).splitlines()[-1] == "SgmaPipeline"


@pytest.mark.parametrize(
    "source", ["model.configuration_sgma", "model.image_processing_sgma", "model.modeling_sgma", "model.pipeline_sgma"]
)
def test_what_is_imported_past_the_front_door_saves_its_code(source):
    program = (
        f"import sgma_hf.{source}\n"
        "import sgma_hf as s\n"
        "public = (s.SgmaConfig, s.SgmaImageProcessor, s.SgmaModel, s.SgmaForSemanticSegmentation)\n"
        "print([each._auto_class for each in public])"
    )
    expected = ["AutoConfig", "AutoImageProcessor", "AutoModel", "AutoModelForSemanticSegmentation"]
    assert run_python(program) == str(expected)


def test_a_spawned_process_unpickles_the_model(tmp_path):
    (tmp_path / "model.pickle").write_bytes(pickle.dumps(tiny_model()))
    program = (
        "import pickle, sys\nmodel = pickle.load(open(sys.argv[1], 'rb'))\n"
        "from transformers import AutoModel\n"
        "print(type(AutoModel.from_config(model.config)) is type(model))"
    )
    assert run_python(program, tmp_path / "model.pickle") == "True"


def test_imports_of_another_thread_count_as_well():
    program = (
        "import sgma_hf, threading\n"
        "thread = threading.Thread(target=__import__, args=('transformers.trainer',))\n"
        "thread.start(); thread.join()\n"
        "from transformers import AutoConfig\n"
        "print(AutoConfig.for_model('sgma').model_type)"
    )
    assert run_python(program) == "sgma"


def test_nothing_is_left_in_the_import_system():
    program = (
        "import sys, sgma_hf, transformers.pipelines\n"
        "print([finder for finder in sys.meta_path if type(finder).__module__ == 'sgma_hf'])"
    )
    assert run_python(program) == "[]"


def test_every_public_name_is_there_and_listed():
    for name in sgma_hf.__all__:
        assert getattr(sgma_hf, name).__name__ == name
        assert name in dir(sgma_hf)
    assert sorted(sgma_hf._MODULES) == sgma_hf.__all__
    with pytest.raises(AttributeError, match="no attribute 'Unknown'"):
        sgma_hf.Unknown  # noqa: B018
