"""A small model on made numbers, as the published scripts were replayed on: for the doctor and the tests."""

import zlib

import numpy as np
import torch
from torch import Tensor

from train_gpt import GPT

VOCABULARY, ROW = 512, 64
# The published baseline at this size; twelve steps of its own script are in the golden numbers.
BASELINE = """
track = "fineweb"
train_steps = 12
[matrix]
step = "muon"
lr = 0.025
weight_decay = 0.05
[aux]
embed_lr = 0.7
head_lr = 0.004
scalar_lr = 0.015
weight_decay = 0.001
"""


@torch.no_grad()
def made_model(dtype: torch.dtype = torch.float64, offset: int = 0) -> GPT:
    """Two layers of width 256; parameter `name` holds 0.02 times the normal numbers of crc32(name) + offset,
    gains 1 more.
    """
    model = GPT(vocab_size=VOCABULARY, num_layers=2, model_dim=256).to(dtype)
    for name, parameter in model.named_parameters():
        generator = np.random.default_rng(zlib.crc32(name.encode()) + offset)
        values = 0.02 * generator.standard_normal(tuple(parameter.shape))
        parameter.copy_(torch.from_numpy(values + name.endswith("gains")))
    return model


def made_tokens(seed: int, rows: int) -> Tensor:
    """Tokens [rows, 64] of a seed, int64."""
    return torch.from_numpy(np.random.default_rng(seed).integers(0, VOCABULARY, (rows, ROW)))
