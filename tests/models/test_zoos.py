"""timm and torchvision without torch's compiler, and what needs the compiler all the same."""

import subprocess
import sys

_LOADING = """
import sys
from eca_hub import Classifier, load_pretrained
found = {"torch._dynamo", "torch._inductor", "sympy", "triton"} & sys.modules.keys()
assert not found, found
"""

_POOLING = """
import torch
from torchvision.ops import roi_align
from torchvision.ops.roi_align import is_compile_supported
boxes = torch.tensor([[0.0, 0.0, 4.0, 4.0]])
assert roi_align(torch.ones(1, 3, 8, 8), [boxes], 2).sum() == 12
supported = is_compile_supported("cpu")
assert supported == sys.modules["torch._dynamo.utils"].is_compile_supported("cpu")
"""

_COMPILING = """
from timm.models.naflexvit import NaFlexRopeIterator
traced = []

def backend(graph, inputs):
    traced.extend(str(node.target) for node in graph.graph.nodes)
    return graph.forward

class Rotation:
    depth, num_heads, dim = 1, 1, 1
    def get_embed(self, shape, dtype):
        return torch.ones(1, 1, 1, 2)

rope = NaFlexRopeIterator(Rotation(), {(1, 1): [0]}, [(1, 1)], 1, 1, torch.device("cpu"), torch.float32)
assert torch.compile(lambda x: next(rope).sum() + x.exp(), backend=backend)(torch.zeros(1)) == 3
assert "exp" in traced and not any("zeros" in name for name in traced), traced
"""


def test_loading_a_network_imports_no_compiler_and_it_is_there_for_what_needs_it() -> None:
    program = _LOADING + _POOLING + _COMPILING
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
