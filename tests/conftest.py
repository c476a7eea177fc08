"""Triton has to be told before it is imported, by whatever test comes first, that there is no GPU."""

import os

import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
