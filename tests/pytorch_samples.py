"""The sample and error inputs of PyTorch's own operator database for convolution layers."""

from __future__ import annotations

import sys
import types
import unittest
import warnings


def _database():
    # PyTorch's module derives classes of tests from this package's, none of which is used here.
    stand_in = types.ModuleType("expecttest")
    stand_in.TestCase = unittest.TestCase
    stand_in.assert_expected_inline = None
    sys.modules.setdefault("expecttest", stand_in)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torch.testing._internal.common_methods_invocations import op_db
    return {op.name.removeprefix("nn.functional."): op for op in op_db if "conv" in op.name}


OPS = _database()
