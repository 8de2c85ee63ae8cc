"""transformers' own common tests, run on SGMA; `transformers_sdist.py` says where they come from."""

import contextlib
import re
import unittest
from unittest import mock

import pytest
import torch
from tiny_models import tiny_config
from transformers.models.auto import modeling_auto
from transformers_sdist import load_common_tests, missing_reason

from sgma_hf import SgmaConfig, SgmaForSemanticSegmentation, SgmaModel, SgmaPreTrainedModel


if missing_reason():
    pytest.skip(missing_reason(), allow_module_level=True)

ModelTesterMixin = load_common_tests("test_modeling_common").ModelTesterMixin
ConfigTester = load_common_tests("test_configuration_common").ConfigTester

NO_TOKENS = "rasters come in, not tokens: there is no table of embeddings to read, resize or replace"
NO_ATTENTIONS = "SGMA does not return the backbone's attentions; its own weights are the robustness maps"
NO_FLASH = "SGF's attention over a handful of modalities has no flash, sdpa or flex form to choose"
NO_LANGUAGE = "no language model, no generation"
NO_FEATURE_GETTERS = "for models that join images or sound with text"
NO_CONVERSION = "checkpoints are saved under the names that the model has; none is renamed on loading"
NO_ROPE = "no rotary position embeddings"
NO_EXPERTS = "no mixture of experts"
NO_PARALLEL_PLAN = "no tensor parallel plan"
NO_RECORDERS = "hidden states are the fused maps, returned by the model itself, not recorded by hooks"
NO_REENTRANT = (
    "PVT-v2 checkpoints its first stage from the pixels on; they need no gradient, so reentrant gives it none"
)
ACCELERATOR = "needs an accelerator"

# Test of the mixin (parameterized ones without their suffix) -> why it does not apply.
SKIPPED_TESTS = {
    "test_model_get_set_embeddings": NO_TOKENS,
    "test_resize_tokens_embeddings": NO_TOKENS,
    "test_resize_tokens_embeddings_with_deepspeed": NO_TOKENS,
    "test_resize_tokens_embeddings_with_deepspeed_multi_gpu": NO_TOKENS,
    "test_resize_embeddings_untied": NO_TOKENS,
    "test_resize_embeddings_untied_with_deepspeed": NO_TOKENS,
    "test_resize_embeddings_untied_with_deepspeed_multi_gpu": NO_TOKENS,
    "test_resize_embeddings_untied_no_reinit_on_post_init": NO_TOKENS,
    "test_resize_position_vector_embeddings": NO_TOKENS,
    "test_inputs_embeds": NO_TOKENS,
    "test_inputs_embeds_matches_input_ids": NO_TOKENS,
    "test_enable_input_require_grads_with_gradient_checkpointing": NO_TOKENS,
    "test_attention_outputs": NO_ATTENTIONS,
    "test_attn_implementation_composite_models": NO_ATTENTIONS,
    "test_can_set_attention_dynamically": NO_ATTENTIONS,
    "test_can_set_attention_dynamically_composite_model": NO_ATTENTIONS,
    "test_sliding_window_mask": NO_ATTENTIONS,
    "test_eager_matches_sdpa_inference": NO_FLASH,
    "test_sdpa_can_compile_dynamic": NO_FLASH,
    "test_sdpa_can_dispatch_composite_models": NO_FLASH,
    "test_sdpa_can_dispatch_non_composite_models": NO_FLASH,
    "test_sdpa_can_dispatch_on_flash": NO_FLASH,
    "test_flex_attention_with_grads": NO_FLASH,
    "test_flash_attn_kernels_inference_equivalence": NO_FLASH,
    "test_flash_attn_kernels_mps_inference_equivalence": NO_FLASH,
    "test_flash_attn_2_inference_equivalence": NO_FLASH,
    "test_flash_attn_2_inference_equivalence_right_padding": NO_FLASH,
    "test_flash_attn_2_can_dispatch_composite_models": NO_FLASH,
    "test_flash_attn_2_fp32_ln": NO_FLASH,
    "test_flash_attn_2_can_compile_with_attention_mask_None_without_graph_break": NO_FLASH,
    "test_flash_attn_2_from_config": NO_FLASH,
    "test_flash_attn_3_inference_equivalence": NO_FLASH,
    "test_flash_attn_3_inference_equivalence_right_padding": NO_FLASH,
    "test_flash_attn_3_can_dispatch_composite_models": NO_FLASH,
    "test_flash_attn_3_from_config": NO_FLASH,
    "test_flash_attn_4_inference_equivalence": NO_FLASH,
    "test_flash_attn_4_inference_equivalence_right_padding": NO_FLASH,
    "test_flash_attn_4_can_dispatch_composite_models": NO_FLASH,
    "test_flash_attn_4_from_config": NO_FLASH,
    "test_kernels_can_load_without_crashing": NO_FLASH,
    "test_causal_lm_loss_honors_shift_labels": NO_LANGUAGE,
    "test_encoder_decoder_loss_no_double_shift": NO_LANGUAGE,
    "test_feed_forward_chunking": "no layer that is computed in chunks",
    "test_model_base_model_prefix": NO_LANGUAGE,  # it looks at generative models only
    "test_generation_tester_mixin_inheritance": NO_LANGUAGE,
    "test_problem_types": "for sequence classification",
    "test_num_layers_is_small": "the backbone counts blocks per stage; `test_model_is_small` counts parameters",
    "test_get_text_features_output": NO_FEATURE_GETTERS,
    "test_get_text_features_hidden_states": NO_FEATURE_GETTERS,
    "test_get_text_features_attentions": NO_FEATURE_GETTERS,
    "test_get_image_features_output": NO_FEATURE_GETTERS,
    "test_get_image_features_pooler_output": NO_FEATURE_GETTERS,
    "test_get_image_features_hidden_states": NO_FEATURE_GETTERS,
    "test_get_image_features_attentions": NO_FEATURE_GETTERS,
    "test_get_audio_features_output": NO_FEATURE_GETTERS,
    "test_get_audio_features_hidden_states": NO_FEATURE_GETTERS,
    "test_get_audio_features_attentions": NO_FEATURE_GETTERS,
    "test_get_video_features_output": NO_FEATURE_GETTERS,
    "test_get_video_features_pooler_output": NO_FEATURE_GETTERS,
    "test_get_video_features_hidden_states": NO_FEATURE_GETTERS,
    "test_get_video_features_attentions": NO_FEATURE_GETTERS,
    "test_reverse_loading_mapping": NO_CONVERSION,
    "test_can_load_from_already_mapped_keys": NO_CONVERSION,
    "test_keep_in_fp32_modules": "no module is kept in float32 by name; the softmaxes are by code",
    "test_keep_in_fp32_modules_exist": "no module is kept in float32 by name; the softmaxes are by code",
    "test_save_load_keys_to_ignore_on_save": "every weight is saved",
    "test_tied_weights_keys": "no weights are tied",
    "test_model_rope_scaling_from_config": NO_ROPE,
    "test_model_rope_scaling_frequencies": NO_ROPE,
    "test_model_rope_with_partial_rotation": NO_ROPE,
    "test_vision_axial_rope": NO_ROPE,
    "test_eager_matches_batched_and_grouped_inference": NO_EXPERTS,
    "test_moe_models_record_router_logits": NO_EXPERTS,
    "test_output_router_logits_from_config": NO_EXPERTS,
    "test_tp_plan_matches_params": NO_PARALLEL_PLAN,
    "test_tied_head_has_a_tp_plan_entry": NO_PARALLEL_PLAN,
    "test_capture_outputs_decorator": NO_RECORDERS,
    "test_can_capture_specific_layers_hidden_states": NO_RECORDERS,
    "test_format_of_can_record_outputs": NO_RECORDERS,
    "test_load_with_mismatched_shapes": "for text classifiers; test_modeling_sgma loads another class count",
    "test_can_load_ignoring_mismatched_shapes": "for classifiers; test_modeling_sgma loads another class count",
    "test_correct_missing_keys": "it loads a head of random weights; ours refuses to, as test_modeling_sgma shows",
    "test_base_model_prefix_loads_base_weights": "as `test_correct_missing_keys`",
    "test_training_gradient_checkpointing_use_reentrant_true": NO_REENTRANT,
    "test_torch_compile_for_training": "slow, needs a C++ compiler; test_export compiles without one",
    "test_model_parallelism": "needs two accelerators",
}
if not torch.cuda.is_available():
    SKIPPED_TESTS |= {
        "test_can_load_with_device_context_manager": ACCELERATOR,
        "test_can_load_with_global_device_set": ACCELERATOR,
        "test_cpu_offload": ACCELERATOR,
        "test_disk_offload_bin": ACCELERATOR,
        "test_disk_offload_safetensors": ACCELERATOR,
    }


class SgmaModelTester:
    """What the mixin asks for: a configuration and a batch."""

    batch_size, image_size, num_labels = 3, 64, 5
    is_training = True

    def get_config(self):
        return tiny_config()

    def prepare_config_and_inputs_for_common(self):
        config = self.get_config()
        generator = torch.Generator().manual_seed(0)
        shape = (self.batch_size, sum(config.modality_channels), self.image_size, self.image_size)
        mask = torch.tensor([[True, True, True], [True, False, True], [False, True, True]])
        inputs = {"pixel_values": torch.rand(shape, generator=generator), "modality_mask": mask}
        device = "cuda" if torch.cuda.is_available() else "cpu"
        return config, {name: value.to(device) for name, value in inputs.items()}


class SgmaModelTest(ModelTesterMixin, unittest.TestCase):
    all_model_classes = (SgmaForSemanticSegmentation, SgmaModel)
    has_attentions = False
    # The mixin asks this of models younger than 2023, which it tells by a copyright line.
    test_can_init_all_missing_weights_before_2023 = True

    def setUp(self):
        self.model_tester = SgmaModelTester()
        # The mixin looks classes up by name, to give them labels or leave out those without a loss.
        names = {
            "MODEL_MAPPING_NAMES": "SgmaModel",
            "MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES": "SgmaForSemanticSegmentation",
        }
        for mapping, name in names.items():
            self._patch(mock.patch.dict(getattr(modeling_auto, mapping), {"sgma": name}))
        # It depends on the backbone, so our classes leave it to their instances; the mixin asks the class.
        self._patch(mock.patch.object(SgmaPreTrainedModel, "supports_gradient_checkpointing", True))

    def _patch(self, patch):
        patch.start()
        self.addCleanup(patch.stop)

    def skipTest(self, reason):
        self.fail(f"{self._testMethodName} skips itself ({reason}); name it in SKIPPED_TESTS if it does not apply.")

    def subTest(self, *args, **kwargs):
        return contextlib.nullcontext()  # pytest reports thousands of them, slowly; the first failure is enough

    def test_hidden_states_output(self):
        # The mixin's own expects sequences of tokens.
        config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
        expected = [(3, 8, 16, 16), (3, 16, 8, 8), (3, 16, 4, 4), (3, 24, 2, 2)]
        for model_class in self.all_model_classes:
            model = model_class(config).to(inputs["pixel_values"].device).eval()
            assert model(**inputs).hidden_states is None
            assert [tuple(maps.shape) for maps in model(**inputs, output_hidden_states=True).hidden_states] == expected
            model.config.output_hidden_states = True
            assert [tuple(maps.shape) for maps in model(**inputs).hidden_states] == expected
            model.config.output_hidden_states = False

    def test_model_outputs_equivalence(self):
        # The mixin subtracts the two outputs, which torch does not do with bools.
        def with_float_coverage(forward):
            def run(*args, **kwargs):
                output = forward(*args, **kwargs)
                if isinstance(output, tuple):
                    return tuple(value.float() if torch.is_tensor(value) else value for value in output)
                output["coverage"] = output["coverage"].float()
                return output

            return run

        for model_class in self.all_model_classes:
            self._patch(mock.patch.object(model_class, "forward", with_float_coverage(model_class.forward)))
        super().test_model_outputs_equivalence()

    def test_bc_torch_dtype(self):
        # The mixin prints every tensor into a message that nobody reads, in 14 of its 15 seconds.
        torch.set_printoptions(threshold=0, edgeitems=1)
        self.addCleanup(torch.set_printoptions, profile="default")
        super().test_bc_torch_dtype()


def _skip_what_does_not_apply():
    for name, reason in SKIPPED_TESTS.items():
        variants = [method for method in dir(ModelTesterMixin) if re.fullmatch(rf"{name}(_\d+(_.*)?)?", method)]
        if not variants:
            raise ValueError(f"SKIPPED_TESTS names {name}, which transformers' ModelTesterMixin does not have.")
        for variant in variants:
            setattr(SgmaModelTest, variant, unittest.skip(reason)(getattr(SgmaModelTest, variant)))


_skip_what_does_not_apply()


class SgmaConfigTest(unittest.TestCase):
    def test_config(self):
        values = {"modalities": ["rgb", "sar"], "modality_channels": [3, 2], "num_attention_heads": 2}
        tester = ConfigTester(
            self,
            config_class=SgmaConfig,
            has_text_modality=False,
            common_properties=["num_attention_heads", "modalities", "num_modalities"],
            **values,
        )
        tester.run_common_tests()
        config = SgmaConfig(**values)
        self.assertEqual([config.num_modalities, config.num_attention_heads], [2, 2])
