"""Small padded tensors, with masks and junk in masked places."""

import torch


def tensor(*rows):
    return torch.tensor(rows, dtype=torch.float64)


MASK = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0]])
JUNK = torch.tensor([[0, 0, 0, 1], [0, 0, 1, 1]]).bool()


def with_junk(values):
    """The same values with infinities and NaN in masked places: no output may notice."""
    junk = values.clone()
    junk[JUNK] = float("nan")
    junk[0, 3] = float("inf")
    return junk
