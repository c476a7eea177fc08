"""Our model under Transformers' own ModelTesterMixin; run by test_model_mixins.py, which brings `hf_tests`."""

import unittest

import torch
from hf_tests.test_modeling_common import ModelTesterMixin  # type: ignore[import-not-found]

from nanochat import NanoChatConfig, NanoChatForCausalLM, NanoChatModel


class NanoChatTester:
    """The sizes that the mixin asks its model tester for."""

    batch_size = 13
    seq_length = 7
    vocab_size = 99
    hidden_size = 32
    num_hidden_layers = 2
    num_attention_heads = 2
    is_training = True

    def prepare_config_and_inputs_for_common(self) -> tuple[NanoChatConfig, dict[str, torch.Tensor]]:
        config = NanoChatConfig(
            vocab_size=self.vocab_size,
            hidden_size=self.hidden_size,
            intermediate_size=64,
            num_hidden_layers=self.num_hidden_layers,
            num_attention_heads=self.num_attention_heads,
            max_position_embeddings=64,
        )
        shape = (self.batch_size, self.seq_length)
        return config, {"input_ids": torch.randint(self.vocab_size, shape), "attention_mask": torch.ones(shape).long()}


class NanoChatMixinTest(ModelTesterMixin, unittest.TestCase):
    all_model_classes = (NanoChatModel, NanoChatForCausalLM)

    def setUp(self) -> None:
        self.model_tester = NanoChatTester()
