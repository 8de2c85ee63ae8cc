"""Every weight is read by its own module alone, so what moves, shards, adapts or quantises modules works."""

import copy

import pytest
import torch
from accelerate import cpu_offload, disk_offload
from tiny_models import spread_weights, tiny_model
from torch.distributed.fsdp import fully_shard
from transformers import BitsAndBytesConfig

from sgma_hf import SgmaForSemanticSegmentation
from sgma_hf.model.fusion_sgma import FUSIONS
from sgma_hf.model.layers_sgma import SgmaIdentityLinear, SgmaLinear


PROJECTIONS = ["query", "key", "value", "output", "pointwise", "classifier"]


def inputs(**more):
    generator = torch.Generator().manual_seed(0)
    mask = torch.tensor([[True, True, False], [True, True, True]])
    return {"pixel_values": torch.randn(2, 6, 64, 64, generator=generator), "modality_mask": mask, **more}


@torch.no_grad()
def logits(model):
    return model(**inputs()).logits


@pytest.mark.parametrize("fusion", FUSIONS)
def test_an_offloaded_model_predicts_the_same(fusion, tmp_path):
    model = spread_weights(tiny_model(fusion=fusion))
    expected = logits(model)
    on_cpu = cpu_offload(copy.deepcopy(model), execution_device="cpu")
    torch.testing.assert_close(logits(on_cpu), expected)
    on_disk = disk_offload(model, tmp_path, execution_device="cpu")
    assert {parameter.device.type for parameter in on_disk.parameters()} == {"meta"}
    torch.testing.assert_close(logits(on_disk), expected)


@pytest.mark.parametrize("share", [0.2, 0.6, 0.9])
def test_an_automatic_device_map_with_little_memory_predicts_the_same(share, tmp_path):
    model = spread_weights(tiny_model())
    model.save_pretrained(tmp_path)
    size = sum(parameter.nbytes for parameter in model.parameters())
    loaded = SgmaForSemanticSegmentation.from_pretrained(
        tmp_path, device_map="auto", max_memory={"cpu": int(share * size)}, offload_folder=tmp_path / "offload"
    )
    assert "disk" in loaded.hf_device_map.values()
    torch.testing.assert_close(logits(loaded), logits(model), rtol=1e-4, atol=1e-5)


def shard(rank, folder):
    """Shard fusions, or every single layer that has weights, over two processes; then predict and train a step."""
    store = torch.distributed.FileStore(str(folder / "store"), 2)
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=2)
    torch.set_num_threads(1)
    model = SgmaForSemanticSegmentation.from_pretrained(folder)
    whole = spread_weights(copy.deepcopy(model))
    step = inputs(labels=torch.zeros(2, 64, 64, dtype=torch.int64), sampling_noise=torch.zeros(2))
    whole.train()(**step).loss.backward()
    mesh = torch.distributed.init_device_mesh("cpu", (2,))
    for fine in (False, True):
        sharded = copy.deepcopy(whole)
        sharded.zero_grad()
        units = [
            module
            for module in sharded.modules()
            if (list(module.parameters(recurse=False)) if fine else isinstance(module, tuple(FUSIONS.values())))
        ]
        for module in [*units, sharded]:
            fully_shard(module, mesh=mesh)
        sharded(**step).loss.backward()
        gradients = {name: parameter.grad.full_tensor() for name, parameter in sharded.named_parameters()}
        for name, parameter in whole.named_parameters():
            torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-4, atol=1e-5, msg=name)
        torch.testing.assert_close(logits(sharded.eval()), logits(copy.deepcopy(whole).eval()), rtol=1e-4, atol=1e-5)
    torch.distributed.destroy_process_group()
    (folder / f"equal_{rank}").touch()


def test_stages_and_single_layers_are_sharded_over_two_processes(tmp_path):
    tiny_model().save_pretrained(tmp_path)
    torch.multiprocessing.spawn(shard, (tmp_path,), nprocs=2)  # raises what an assertion in a process raises
    assert {path.name for path in tmp_path.glob("equal_*")} == {"equal_0", "equal_1"}


@pytest.mark.parametrize("targets", [PROJECTIONS, "all-linear"])
def test_low_rank_adapters_learn_in_every_projection(targets):
    peft = pytest.importorskip("peft")
    model = spread_weights(tiny_model())
    projections = sum(isinstance(layer, SgmaLinear | SgmaIdentityLinear) for layer in model.sgma.modules())
    expected = logits(model)
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=targets)).train()
    torch.testing.assert_close(logits(adapted), expected, rtol=1e-4, atol=1e-5)  # adapters begin at 0
    generator = torch.Generator().manual_seed(0)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.1, generator=generator)
    adapted(**inputs(labels=torch.zeros(2, 64, 64, dtype=torch.int64))).loss.backward()
    adapters = [parameter for parameter in adapted.parameters() if parameter.requires_grad]
    assert len(adapters) >= 2 * projections
    assert all(parameter.grad.abs().sum() > 0 for parameter in adapters)
    learnt = logits(adapted.eval())
    assert (learnt - expected).abs().max() > 0.1
    torch.testing.assert_close(logits(adapted.merge_and_unload()), learnt, rtol=1e-4, atol=1e-4)


def test_quantised_weights_predict_what_their_rounded_values_do():
    quantization = pytest.importorskip("torchao.quantization")
    model = spread_weights(tiny_model())
    quantised = copy.deepcopy(model)
    quantization.quantize_(quantised, quantization.Int8WeightOnlyConfig())
    for name, layer in model.named_modules():
        if isinstance(layer, torch.nn.Linear):
            layer.weight.data.copy_(quantised.get_parameter(f"{name}.weight").dequantize())
    torch.testing.assert_close(logits(quantised), logits(model), rtol=1e-4, atol=1e-4)


def test_a_checkpoint_loads_in_eight_bits(tmp_path):
    pytest.importorskip("bitsandbytes")
    model = spread_weights(tiny_model())
    model.save_pretrained(tmp_path)
    eight_bits = BitsAndBytesConfig(load_in_8bit=True)
    loaded = SgmaForSemanticSegmentation.from_pretrained(
        tmp_path, quantization_config=eight_bits, device_map={"": "cpu"}
    )
    assert any(parameter.dtype == torch.int8 for parameter in loaded.parameters())
    same = logits(loaded).argmax(1) == logits(model).argmax(1)
    assert same.float().mean() > 0.9  # bitsandbytes computes in float16 with rounded weights
