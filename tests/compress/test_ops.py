"""Products whose ties rounding does not decide."""

from __future__ import annotations

import pytest
import torch

from omnicli.compress.ops import SAME, first_largest, gram


@pytest.mark.parametrize("width", [3, 64, 2048])
@pytest.mark.parametrize("n", [1, 2, 5, 6, 7, 9, 10, 11, 16, 17, 30, 144])
def test_products_are_symmetric_and_those_of_copies_equal(n, width):
    rows = torch.randn(2, n, width, generator=torch.Generator().manual_seed(n))
    half = n // 2
    rows[:, n - half :] = rows[:, :half]
    got = gram(rows)
    assert torch.equal(got, got.transpose(1, 2))
    assert n > 16 or torch.equal(got[:, :half], got[:, n - half :])
    torch.testing.assert_close(got.double(), rows.double() @ rows.double().transpose(1, 2), rtol=1e-5, atol=1e-3)
    out = torch.empty_like(got)
    assert gram(rows, out) is out and torch.equal(out, got)


def test_the_first_of_values_that_differ_by_rounding():
    values = torch.tensor([[0.5, 0.9, 0.9 + SAME / 2, 0.1], [0.9, 0.5, 0.9 + 3 * SAME, 0.1]])
    assert first_largest(values).tolist() == [1, 2]
    assert first_largest(values[:1], torch.tensor([[1.0]])).tolist() == [0]
