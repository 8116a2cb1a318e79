"""torch.compile through a run whose rows change shape: once for each shape, and never given up on."""

from functools import partial

import pytest

torch = pytest.importorskip("torch")


def test_more_shapes_than_pytorch_would_compile_by_itself(monkeypatch):
    from torch._dynamo.testing import CompileCounter

    from sconce_torch.compile import Compiled

    counter = CompileCounter()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=counter))
    double = Compiled(lambda x_BT: 2 * x_BT)
    for rows in [*range(1, 13)] * 2:
        assert double(torch.ones(rows, 3)).tolist() == [[2.0] * 3] * rows
    assert counter.frame_count == 12
