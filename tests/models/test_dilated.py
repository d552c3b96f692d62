"""The dilated depthwise convolution in sub-grids equals the ordinary one."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from cilseg.models.backbone import Backbone
from cilseg.models.dilated import SubgridConv2d, use_subgrid_convolutions

sizes = st.integers(1, 17)


@settings(max_examples=60, deadline=None)
@given(
    height=sizes,
    width=sizes,
    dilation=st.sampled_from([2, 3, 4, 7]),
    kernel=st.sampled_from([(1, 1), (3, 3), (5, 5), (3, 7)]),
    bias=st.booleans(),
    seed=st.integers(0, 99),
)
def test_equal_to_the_ordinary_convolution(height, width, dilation, kernel, bias, seed):
    torch.manual_seed(seed)
    padding = tuple(dilation * (k // 2) for k in kernel)
    arguments = {"padding": padding, "dilation": dilation, "groups": 4, "bias": bias, "dtype": torch.float64}
    plain = nn.Conv2d(4, 4, kernel, **arguments)
    fast = nn.Sequential(nn.Conv2d(4, 4, kernel, **arguments))
    assert use_subgrid_convolutions(fast) == 1
    assert isinstance(fast[0], SubgridConv2d)
    fast[0].load_state_dict(plain.state_dict())
    x = torch.randn(2, 4, height, width, dtype=torch.float64)
    cotangent = torch.randn_like(x)
    results = []
    for module in (plain, fast):
        leaf = x.clone().requires_grad_()
        out = module(leaf)
        (out * cotangent).sum().backward()
        results.append([out.detach(), leaf.grad, *(p.grad for p in module.parameters())])
    for got, wanted in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-12)


def test_only_dilated_depthwise_convolutions_are_swapped():
    same = {"padding": 2, "dilation": 2}
    kept = [
        nn.Conv2d(4, 4, 3, padding=1, groups=4),
        nn.Conv2d(4, 8, 3, groups=4, **same),
        nn.Conv2d(4, 4, 3, groups=2, **same),
        nn.Conv2d(4, 4, 3, groups=4, padding=1, dilation=2),
        nn.Conv2d(4, 4, 3, groups=4, stride=2, **same),
        nn.Conv2d(4, 4, 3, groups=4, padding_mode="reflect", **same),
    ]
    module = nn.ModuleList([*kept, nn.Conv2d(4, 4, 3, groups=4, **same)])
    keys = list(module.state_dict())
    assert use_subgrid_convolutions(module) == 1
    assert all(type(conv) is nn.Conv2d for conv in kept)
    assert list(module.state_dict()) == keys


def test_a_backbone_gives_the_same_with_and_without_gradient():
    torch.manual_seed(0)
    backbone = Backbone("test_efficientnet", output_stride=8).double().eval()
    assert any(isinstance(m, SubgridConv2d) for m in backbone.modules())
    x = torch.randn(1, 3, 48, 40, dtype=torch.float64)
    with_gradient = backbone(x).detach()
    with torch.no_grad():
        torch.testing.assert_close(backbone(x), with_gradient, rtol=1e-10, atol=1e-12)


def test_the_exported_graph_holds_one_convolution():
    module = nn.Sequential(nn.Conv2d(4, 4, 3, padding=2, dilation=2, groups=4)).eval()
    use_subgrid_convolutions(module)
    graph = torch.export.export(module, (torch.randn(1, 4, 9, 9),)).graph
    operators = [str(node.target) for node in graph.nodes if node.op == "call_function"]
    assert operators == ["aten.conv2d.default"]
