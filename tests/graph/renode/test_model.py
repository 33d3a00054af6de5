"""Backbones: fixtures of the released code, the fixed propagation against torch_geometric's own, names."""

from __future__ import annotations

import copy
import gc
import io
import pickle
import re
import weakref

import numpy as np
import pytest
import torch
import torch_geometric.nn.models
from hypothesis import given
from hypothesis import strategies as st
from torch.autograd import forward_ad
from torch_geometric.explain.algorithm.utils import clear_masks, set_masks
from torch_geometric.nn import APPNP, ChebConv, GCNConv, MessagePassing, SAGEConv, SGConv

from fairseq_ext.training.errors import DataError, OptionError
from graph.remembered import Remembered
from graph.renode.model import MODELS, PACKAGE, build_model
from graph.renode.ppnp import dense_pagerank
from graph.renode.propagation import FixedAPPNP, FixedChebConv, FixedGCNConv, FixedSAGEConv
from tests.helpers import load_golden

CLASSES, HIDDEN = 4, 16


def released_name(model: str, layers: int, name: str) -> str:
    """Where the released code keeps the parameter ``name`` of our model."""
    if model == "sgc":
        return f"conv1.{name}"
    prefix, _, rest = name.removeprefix("mlp.").partition(".")
    index, _, parameter = rest.partition(".")
    assert prefix in ("convs", "lins")
    stem = "conv" if prefix == "convs" else "line"
    index = int(index)
    place = "1" if index == 0 else "2" if index == layers - 1 else f"x.{index - 1}"
    return f"{stem}{place}.{parameter}"


def released_cases():
    for model in ("gcn", "gat", "sgc", "cheb", "ppnp"):
        for graph in ("small_b", "small_c_iso", "small_d_step"):
            for layers in (1, 2, 3):
                # The released one-layer GAT and Cheb put a ReLU on the logits.
                yield pytest.param(model, graph, layers, id=f"{model}-{graph}-{layers}")


@pytest.mark.parametrize(("model", "graph", "layers"), list(released_cases()))
def test_released_backbones(model, graph, layers):
    data, case = load_golden("renode", graph), f"{graph}.l{layers}."
    golden = {key[len(case) :]: value for key, value in load_golden("renode", f"gnn_{model}").items() if case in key}
    x, edge_index = torch.tensor(data["x"], requires_grad=True), torch.tensor(data["edge_index"])
    topk = 10 if (model, graph) == ("ppnp", "small_d_step") else 0
    net = build_model(model, x.size(1), golden["out"].shape[1], HIDDEN, layers, topk=topk).eval()
    names = {name: released_name(model, layers, name) for name, _ in net.named_parameters()}
    assert {f"w.{name}" for name in names.values()} == {key for key in golden if key.startswith("w.")}
    net.load_state_dict({name: torch.tensor(golden[f"w.{released}"]) for name, released in names.items()})

    out = net(x, edge_index)
    if layers == 1 and model in ("gat", "cheb"):
        out = out.relu()
    close = dict(rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(out, torch.tensor(golden["out"]), **close)
    (out * torch.tensor(golden["cotangent"])).sum().backward()
    torch.testing.assert_close(x.grad, torch.tensor(golden["grad_x"]), **close)
    for name, parameter in net.named_parameters():
        torch.testing.assert_close(parameter.grad, torch.tensor(golden[f"gw.{names[name]}"]), **close)


# torch_geometric's layer, and ours.
LAYERS = {
    "gcn": (lambda: GCNConv(6, 3), lambda: FixedGCNConv(6, 3)),
    "sage": (lambda: SAGEConv(6, 3), lambda: FixedSAGEConv(6, 3)),
    "cheb": (lambda: ChebConv(6, 3, K=2), lambda: FixedChebConv(6, 3, K=2)),
    "appnp": (lambda: APPNP(4, 0.15), lambda: FixedAPPNP(4, 0.15)),
}


@pytest.mark.parametrize("name", LAYERS)
@given(seed=st.integers(0, 10_000), needs_grad=st.booleans())
def test_fixed_propagation_is_the_layers_own(name, seed, needs_grad):
    """Directed graphs with duplicates, self-loops and isolated nodes; forward, gradients, and a second, other input."""
    torch.manual_seed(seed)
    edge_index = torch.randint(0, 9, (2, 20))
    own, fixed = (layer().double() for layer in LAYERS[name])
    fixed.load_state_dict(own.state_dict())
    for _ in range(2):
        x = torch.randn(10, 6, dtype=torch.float64, requires_grad=needs_grad)
        x_fixed = x.detach().clone().requires_grad_(needs_grad)
        for _ in range(2):
            out, out_fixed = own(x, edge_index), fixed(x_fixed, edge_index)
            torch.testing.assert_close(out_fixed, out)
        if needs_grad:
            cotangent = torch.randn_like(out)
            out.backward(cotangent)
            out_fixed.backward(cotangent)
            torch.testing.assert_close(x_fixed.grad, x.grad)


def test_constant_features_are_propagated_once():
    conv = FixedSAGEConv(6, 3)
    x, edge_index = torch.randn(10, 6), torch.randint(0, 10, (2, 20))
    first = conv.propagate(edge_index, x=(x, x))
    assert conv.propagate(edge_index.clone(), x=(x.clone(), x)) is first
    assert not torch.equal(conv.propagate(edge_index, x=(x + 1, x)), first)


def live_storages():
    """The shapes of all tensors there are, and of their storages, also those of sparse matrices, the bytes."""
    gc.collect()
    shapes, storages = [], {}
    for item in gc.get_objects():
        if type(item) in (torch.Tensor, torch.nn.Parameter):  # what other tests compiled left tensors without storage
            csr = item.layout == torch.sparse_csr
            for part in (item.crow_indices(), item.col_indices(), item.values()) if csr else (item,):
                shapes.append(tuple(part.shape))
                storages[part.untyped_storage().data_ptr()] = part.untyped_storage().nbytes()
    return shapes, sum(storages.values())


@pytest.mark.parametrize("name", [name for name in MODELS if name != "gat"])
def test_a_model_holds_its_graph_once_and_no_hidden_activations(name):
    x, edges, sizes = torch.randn(67, 6), torch.randperm(67 * 67)[:2000], []
    edge_index = torch.stack([edges // 67, edges % 67])
    for layers in (1, 8):
        model = build_model(name, 6, 3, HIDDEN, layers, hops=layers)
        _, before = live_storages()
        model.train()(x, edge_index).sum().backward()
        model.zero_grad()
        with torch.no_grad():
            for _ in range(2):
                model.eval()(x, edge_index)
        shapes, after = live_storages()
        assert not {(67, HIDDEN), (67, 3)} & set(shapes)
        sizes.append(after - before)
    assert 0 < sizes[0] == sizes[1] < (56 if name == "sgc" else 40) * 2000, "bytes an edge; its ids have 16"


@pytest.mark.parametrize("name", ["gcn", "sage"])
@pytest.mark.parametrize("layers", [1, 2, 3])
def test_stacks_are_torch_geometrics(name, layers):
    """Their parameters, names and initial values too."""
    own = {"gcn": torch_geometric.nn.models.GCN, "sage": torch_geometric.nn.models.GraphSAGE}[name]
    torch.manual_seed(0)
    theirs = own(6, 8, layers, 3, dropout=0.5)
    torch.manual_seed(0)
    ours = build_model(name, 6, 3, 8, layers)
    assert isinstance(ours, own) and ours.state_dict().keys() == theirs.state_dict().keys()
    assert all(torch.equal(value, theirs.state_dict()[key]) for key, value in ours.state_dict().items())
    x, edge_index = torch.randn(10, 6), torch.randint(0, 10, (2, 24))
    for model in (ours, theirs):
        torch.manual_seed(1)  # the same dropout
        model.logits = model.train()(x, edge_index)
    torch.testing.assert_close(ours.logits, theirs.logits)


def test_sgc_is_torch_geometrics():
    x, edge_index = torch.randn(10, 6), torch.randint(0, 10, (2, 24))
    ours, theirs = build_model("sgc", 6, 3, num_layers=3), SGConv(6, 3, K=3)
    theirs.load_state_dict(ours.state_dict())
    torch.testing.assert_close(ours(x, edge_index), theirs(x, edge_index))


def negate_through_data(x, edge_index):
    x.data.mul_(-1)
    return x, edge_index


def fill_through_numpy(x, edge_index):
    np.copyto(x.numpy(), 1)
    return x, edge_index


# What may happen to features and edges between two calls.
CHANGES = {
    "features in place": lambda x, e: (x.zero_(), e),
    "features through .data": negate_through_data,
    "features through numpy": fill_through_numpy,
    "other features": lambda x, e: (x.flip(0), e),
    "edges in place": lambda x, e: (x, e.add_(3).remainder_(len(x))),
    "as many other edges": lambda x, e: (x, (e * 5 + 1) % len(x)),
    "fewer edges": lambda x, e: (x, e[:, ::2]),
    "fewer nodes": lambda x, e: (x[:6], e % 6),
    "an isolated node more": lambda x, e: (torch.cat([x, x[:1]]), e),
}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("name", [*MODELS, PACKAGE + "GCN"])
def test_models_are_functions_of_their_arguments(name, change, training):
    """A model that has seen one graph says of another what a new model with its parameters says."""
    torch.manual_seed(0)
    x, edge_index = torch.randn(10, 6), torch.randint(0, 10, (2, 24))
    model = build_model(name, 6, 3, hidden_channels=8, dropout=0.0).train(training)
    before = model(x, edge_index).detach()
    new = build_model(name, 6, 3, hidden_channels=8, dropout=0.0).train(training)
    new.load_state_dict(model.state_dict())
    x, edge_index = CHANGES[change](x, edge_index)
    with torch.set_grad_enabled(training):
        out = model(x, edge_index)
        torch.testing.assert_close(out, new(x.clone(), edge_index.clone()))
        torch.testing.assert_close(model(x, edge_index), out)
    assert out.shape != before.shape or not torch.allclose(out, before, atol=1e-3)


@pytest.mark.parametrize("name", MODELS)
def test_models_take_another_type(name):
    x, edge_index = torch.randn(10, 6), torch.randint(0, 10, (2, 24))
    model = build_model(name, 6, 3, hidden_channels=8).eval()
    out = model(x, edge_index)
    torch.testing.assert_close(model.double()(x.double(), edge_index).float(), out, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_models_can_be_copied_and_pickled(name):
    """Copies share nothing: each stays a function of its arguments, and of its own parameters."""
    x, edge_index = torch.randn(10, 6), torch.randint(0, 10, (2, 24))
    model = build_model(name, 6, 3, hidden_channels=8).eval()
    out = model(x, edge_index)
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    loaded = torch.load(buffer, weights_only=False)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), loaded):
        assert torch.equal(other(x, edge_index), out)
        with torch.no_grad():
            for parameter in other.parameters():
                parameter.zero_()
        other(x.flip(0), edge_index)
        assert torch.equal(other(x, edge_index), torch.zeros(10, 3)) and torch.equal(model(x, edge_index), out)


@pytest.mark.parametrize("name", ["gcn", "cheb", "appnp"])
def test_other_edge_weights_of_a_layer(name):
    torch.manual_seed(0)
    x, edge_index, weight = torch.randn(10, 6), torch.randint(0, 10, (2, 24)), torch.rand(24)
    own, fixed = (layer() for layer in LAYERS[name])
    own.load_state_dict(fixed.state_dict())
    for _ in range(3):
        torch.testing.assert_close(fixed(x, edge_index, weight), own(x, edge_index, weight))
        weight.mul_(torch.rand(24))
    torch.testing.assert_close(fixed(x, edge_index), own(x, edge_index))
    weight.requires_grad_()
    gradients = [torch.autograd.grad(layer(x, edge_index, weight).square().sum(), weight) for layer in (fixed, own)]
    torch.testing.assert_close(*gradients)


@pytest.fixture(params=LAYERS)
def pair(request):
    """torch_geometric's layer and ours, with its parameters, and a graph."""
    torch.manual_seed(0)
    own, fixed = (layer() for layer in LAYERS[request.param])
    fixed.load_state_dict(own.state_dict())
    x, edge_index = torch.randn(10, 6), torch.randint(0, 10, (2, 24))
    fixed(x, edge_index)  # there is something to be remembered
    return own, fixed, x, edge_index


def test_explainers_mask_the_messages_of_a_layer(pair):
    *layers, x, edge_index = pair
    mask = torch.randn(24, requires_grad=True)
    masked = []
    for layer in layers:
        before = layer(x, edge_index)
        set_masks(layer, mask, edge_index)
        out = layer(x, edge_index)
        assert not torch.allclose(out, before)
        masked += [(out, *torch.autograd.grad(out.square().sum(), mask))]
        clear_masks(layer)
        torch.testing.assert_close(layer(x, edge_index), before)
    torch.testing.assert_close(*masked)


@pytest.mark.parametrize("name", [name for name in MODELS if name != "ppnp"])
def test_explainers_find_the_layers_of_a_model(name):
    torch.manual_seed(0)
    x, edge_index = torch.randn(10, 6), torch.randint(0, 10, (2, 24))
    model = build_model(name, 6, 3, hidden_channels=8).eval()
    before, mask = model(x, edge_index), torch.zeros(24, requires_grad=True)
    set_masks(model, mask, edge_index)
    assert torch.autograd.grad(model(x, edge_index)[0].sum(), mask)[0].any()
    clear_masks(model)
    torch.testing.assert_close(model(x, edge_index), before)


@pytest.mark.parametrize("kind", ["forward", "forward_pre"])
@pytest.mark.parametrize("step", ["propagate", "message", "aggregate"])
def test_hooks_of_a_layer_see_and_change_what_they_do_in_torch_geometrics(pair, step, kind):
    *layers, x, edge_index = pair
    seen = []

    def hook(layer, inputs, *output):
        seen.append((list(inputs[-1]), inputs[-1]))
        if output:
            return 2 * output[0]
        if step == "message":
            inputs[-1]["x_j"] = -inputs[-1]["x_j"]
        return inputs if step == "propagate" else inputs[-1]

    results = []
    for layer in layers:
        before, calls = layer(x, edge_index), len(seen)
        handle = getattr(layer, f"register_{step}_{kind}_hook")(hook)
        results.append(layer(x, edge_index))
        assert len(seen) > calls and (kind == "forward_pre" or not torch.allclose(results[-1], before))
        handle.remove()
        torch.testing.assert_close(layer(x, edge_index), before)
    torch.testing.assert_close(results[1], results[0])
    for (names, own), (others, fixed) in zip(seen[: len(seen) // 2], seen[len(seen) // 2 :], strict=True):
        assert names == others
        for name in names:
            torch.testing.assert_close(fixed[name], own[name])


def test_hooks_of_sgcs_propagation_are_called_at_every_call():
    calls, model = [], build_model("sgc", 6, 3)
    (layer,) = (module for module in model.modules() if isinstance(module, MessagePassing))
    layer.register_forward_hook(lambda *_: calls.append(1))
    for _ in range(3):
        model(torch.ones(10, 6), torch.zeros(2, 1, dtype=torch.long))
    assert len(calls) == 3


def test_torch_func_and_forward_mode_find_torch_geometrics_derivatives(pair):
    *layers, x, edge_index = pair
    tangent, weight = torch.randn(10, 6), torch.rand(24)
    results = []
    for layer in layers:
        parameters = dict(layer.named_parameters())
        weights = () if isinstance(layer, SAGEConv) else (weight,)

        def loss(parameters, x, *weights, layer=layer):
            return torch.func.functional_call(layer, parameters, (x, edge_index, *weights)).square().sum()

        with forward_ad.dual_level():
            dual = forward_ad.unpack_dual(layer(forward_ad.make_dual(x, tangent), edge_index))
        arguments = tuple(range(2 + len(weights)))
        results.append(
            [
                dual.tangent,
                torch.func.grad(loss, arguments)(parameters, x, *weights),
                torch.func.jvp(lambda x, layer=layer: layer(x, edge_index), (x,), (tangent,)),
                torch.func.vmap(layer, (0, None))(torch.stack([x, tangent]), edge_index),
                layer(x, edge_index),
            ]
        )
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("seen", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_torch_func_of_a_model(name, seen):
    """Also of one whose first call is within a transform, and leaves nothing of it behind."""
    torch.manual_seed(0)
    x, edge_index = torch.randn(10, 6), torch.randint(0, 10, (2, 24))
    model = build_model(name, 6, 3, hidden_channels=8).eval()
    if seen:
        model(x, edge_index)
    parameters = {key: value.detach() for key, value in model.named_parameters()}

    def loss(parameters):
        return torch.func.functional_call(model, parameters, (x, edge_index)).square().sum()

    gradients = torch.func.grad(loss)(parameters)
    loss(dict(model.named_parameters())).backward()
    for key, parameter in model.named_parameters():
        torch.testing.assert_close(gradients[key], parameter.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("autocast", [True, False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", MODELS)
def test_models_take_half_precision(name, dtype, autocast):
    torch.manual_seed(0)
    x, edge_index = torch.randn(10, 6), torch.randint(0, 10, (2, 24))
    model = build_model(name, 6, 3, hidden_channels=8).eval()
    expected, half = model(x, edge_index), copy.deepcopy(model)
    if not autocast:
        half, x = half.to(dtype), x.to(dtype)
    with torch.autocast("cpu", dtype, enabled=autocast):
        for _ in range(2):
            out = half(x, edge_index)
            assert autocast or out.dtype == dtype
            torch.testing.assert_close(out.float(), expected, rtol=0.05, atol=0.05)
            out.float().square().sum().backward()  # within autocast, as torch advises against but takes
    assert all(parameter.grad is not None for parameter in half.parameters())
    if autocast:
        assert torch.equal(half(x, edge_index), expected), "what was computed under autocast"


def test_half_precision_counts_the_edges_of_a_hub():
    """A sum of ones in bfloat16 ends at 256."""
    edge_index = torch.stack([torch.arange(1, 2001), torch.zeros(2000, dtype=torch.long)])
    x = torch.ones(2001, 1)
    layer = FixedAPPNP(1, 0.0)
    expected = layer(x, edge_index)
    torch.testing.assert_close(layer(x.bfloat16(), edge_index).float(), expected, rtol=0.01, atol=0)


LAYOUTS = {
    "csr": lambda matrix: matrix.to_sparse_csr(),
    "csc": lambda matrix: matrix.to_sparse_csc(),
    "coo": lambda matrix: matrix.to_sparse_coo(),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.filterwarnings("ignore:Sparse")
def test_models_take_adj_t(name, layout):
    """The transposed matrix, as ``ToSparseTensor`` makes it, of a directed graph."""
    torch.manual_seed(0)
    x, edge_index = torch.randn(10, 6), torch.randint(0, 10, (2, 24)).unique(dim=1)
    model = build_model(name, 6, 3, hidden_channels=8).eval()
    adj_t = torch.zeros(10, 10).index_put((edge_index[1], edge_index[0]), torch.tensor(1.0))
    if (name, layout) == ("gat", "csc"):  # torch_geometric's own layer
        with pytest.raises(ValueError, match=r"Unexpected sparse tensor layout .*sparse_csc"):
            model(x, adj_t.to_sparse_csc())
        return
    for _ in range(2):
        torch.testing.assert_close(model(x, LAYOUTS[layout](adj_t)), model(x, edge_index))
    weighted = adj_t * torch.rand(10, 10)
    if name == "gat":
        return
    if name in ("sage", "ppnp"):
        with pytest.raises(DataError, match=r"adj_t must hold only 1, as weights of edges are not read here, got 0\."):
            model(x, LAYOUTS[layout](weighted))
        return
    layer = next(module for module in model.modules() if isinstance(module, MessagePassing))
    x = torch.randn(10, layer.in_channels) if hasattr(layer, "in_channels") else x
    weight = weighted[edge_index[1], edge_index[0]]
    torch.testing.assert_close(layer(x, LAYOUTS[layout](weighted)), layer(x, edge_index, weight))
    with pytest.raises(DataError, match="edge_weight: those of adj_t are its values"):
        layer(x, LAYOUTS[layout](weighted), weight)


def test_sage_takes_bipartite_graphs():
    own, fixed = (layer() for layer in LAYERS["sage"])
    fixed.load_state_dict(own.state_dict())
    x, edge_index = torch.randn(10, 6), torch.randint(0, 4, (2, 24))
    for sides, size in (((x, x[:4]), None), ((x, None), (10, 4)), ((x, x.flip(0)), None)):
        torch.testing.assert_close(fixed(sides, edge_index, size), own(sides, edge_index, size))


@pytest.mark.parametrize("name", ["gcn", "appnp"])
def test_layers_take_several_graphs_of_the_same_edges(name):
    own, fixed = (layer() for layer in LAYERS[name])
    fixed.load_state_dict(own.state_dict())
    x, edge_index = torch.randn(3, 10, 6), torch.randint(0, 10, (2, 24))
    torch.testing.assert_close(fixed(x, edge_index), own(x, edge_index))


def test_layers_of_a_subclass_are_its_parents():
    """torch_geometric compiles a propagation for each class."""

    class Subclass(FixedGCNConv):
        """Nothing of its own."""

    class Other(FixedGCNConv):
        def propagate(self, edge_index, size=None, **inputs):
            return torch.zeros(10, 3)

    class Another(Other):
        """Nothing of its own, either."""

    torch.manual_seed(0)
    x, edge_index, parent = torch.randn(10, 6), torch.randint(0, 10, (2, 24)), FixedGCNConv(6, 3)
    layer = Subclass(6, 3)
    layer.load_state_dict(parent.state_dict())
    assert torch.equal(layer(x, edge_index), parent(x, edge_index))
    assert not Another(6, 3)(x, edge_index).any()


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("side", [0, 1])
def test_edges_to_nodes_that_are_not_there_are_refused(name, side):
    edge_index = torch.tensor([[0, 1], [1, 0]])
    edge_index[side, 1] = 10
    with pytest.raises((DataError, IndexError, RuntimeError), match=r"graph has 10, from 0 on|out of (bounds|range)"):
        LAYERS[name][1]()(torch.ones(10, 6), edge_index)


def test_appnp_approaches_ppnp():
    data = load_golden("renode", "small_b")
    x, edge_index = torch.tensor(data["x"]), torch.tensor(data["edge_index"])
    exact, steps = (build_model(name, x.size(1), CLASSES, hops=120).eval() for name in ("ppnp", "appnp"))
    steps.mlp.load_state_dict(exact.mlp.state_dict())
    torch.testing.assert_close(steps(x, edge_index), exact(x, edge_index), rtol=1e-5, atol=1e-6)
    matrix = exact.propagation(torch.eye(len(x)), edge_index)
    np.testing.assert_allclose(matrix.numpy(), data["Pi"], atol=1e-6)


def test_ppnp_is_no_limit_of_appnp_on_directed_graphs_and_self_loops():
    """As documented: it reads the targets of edges, and counts self-loops twice, as the released matrix does."""
    torch.manual_seed(0)
    x = torch.randn(4, 6)
    exact, steps = (build_model(name, 6, CLASSES, hops=300).eval() for name in ("ppnp", "appnp"))
    steps.mlp.load_state_dict(exact.mlp.state_dict())
    path = torch.tensor([[0, 0, 1, 2], [1, 2, 3, 3]])
    torch.testing.assert_close(exact(x, path), steps(x, path.flip(0)), rtol=1e-5, atol=1e-6)
    assert not torch.allclose(exact(x, path), steps(x, path), atol=1e-2)
    looped = torch.cat([path, path.flip(0), torch.tensor([[3], [3]])], 1)
    with_loops = torch.eye(4).index_put(tuple(looped), torch.tensor(1.0), accumulate=True)
    scale = with_loops.sum(1).rsqrt()
    matrix = 0.15 * torch.linalg.inv(torch.eye(4) - 0.85 * scale[:, None] * with_loops * scale)
    torch.testing.assert_close(exact(x, looped), matrix @ exact.mlp(x), rtol=1e-5, atol=1e-6)
    assert not torch.allclose(exact(x, looped), steps(x, looped), atol=1e-3)


@pytest.mark.parametrize("name", [*MODELS, *(PACKAGE + model for model in ("GCN", "GIN", "GraphSAGE", "EdgeCNN"))])
def test_every_backbone_trains(name):
    data = load_golden("renode", "small_b")
    x, edge_index, y = (torch.tensor(data[key]) for key in ("x", "edge_index", "y"))
    torch.manual_seed(0)
    model = build_model(name, x.size(1), CLASSES, HIDDEN, num_layers=2)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    losses = []
    for _ in range(40):
        loss = torch.nn.functional.cross_entropy(model(x, edge_index), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert np.mean(losses[-5:]) < 0.85 * losses[0]
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("gccn", {}, "--backbone: 'gccn' is not one of gcn, .*did you mean 'gcn'"),
        (PACKAGE + "GraphSAG", {}, "did you mean 'GraphSAGE'"),
        ("torch_geometric.nn.models.MLP", {}, "does not make logits from x, edge_index"),
        ("torch_geometric.nn.models.PNA", {}, "does not make logits from x, edge_index"),
        ("torch_geometric.nn.models.__class__", {}, "--backbone"),
        ("os.system", {}, "--backbone: 'os.system' is not one of"),
        ("gat", dict(hidden_channels=30), "--hidden-size must be a multiple of gat's 4 heads, got 30"),
        ("gcn", dict(num_layers=0), "--num-layers, --hidden-size and --hops must be at least 1"),
        ("gcn", dict(dropout=1.0), "--dropout in"),
        ("ppnp", dict(topk=-1), "topk must be at least 0, got -1"),
        ("appnp", dict(alpha=1.5), "alpha must be at least 1e-06 and less than 1, got 1.5"),
    ],
)
def test_refusals(name, options, message):
    with pytest.raises(OptionError, match=message) as refusal:
        build_model(name, 8, CLASSES, **options)
    assert not re.search(r"\n", str(refusal.value))


def test_models_of_one_graph_may_share_ppnps_matrix():
    calls = []
    matrix = Remembered(lambda *arguments: calls.append(arguments) or dense_pagerank(*arguments))
    x, edge_index = torch.randn(10, 6), torch.randint(0, 10, (2, 24))
    alone, *shared = (build_model("ppnp", 6, 3, matrix=kind).eval() for kind in (None, matrix, matrix))
    for model in shared:
        model.load_state_dict(alone.state_dict())
        assert torch.equal(model(x, edge_index), alone(x, edge_index))
    assert len(calls) == 1
    lives = weakref.ref(alone.propagation.matrix(edge_index, 10, 0.15))
    del alone
    assert lives() is None, "a matrix that no model needs"


def test_a_matrix_of_ones_own_needs_to_know_of_no_cut():
    x, edge_index = torch.randn(10, 6), torch.randint(0, 10, (2, 24))
    model = build_model("ppnp", 6, 3, matrix=lambda edges, nodes, alpha: torch.zeros(nodes, nodes)).eval()
    assert model(x, edge_index).eq(0).all()
    with pytest.raises(TypeError):
        build_model("ppnp", 6, 3, topk=2, matrix=lambda edges, nodes, alpha: torch.zeros(nodes, nodes))(x, edge_index)


def test_ppnp_keeps_the_largest_entries_of_a_row_and_what_ties_with_the_last():
    star = torch.tensor([[0] * 5, [1, 2, 3, 4, 5]])
    whole = dense_pagerank(torch.cat([star, star.flip(0)], 1), 6, 0.15)
    kept = {topk: dense_pagerank(torch.cat([star, star.flip(0)], 1), 6, 0.15, topk) for topk in (1, 2, 3, 6, 9)}
    assert torch.equal(kept[2][0], whole[0]), "all leaves tie"
    assert torch.equal(kept[2][1], whole[1].where(torch.tensor([True, True, *[False] * 4]), 0))
    assert torch.equal(kept[3][1], whole[1]), "the other leaves tie"
    assert (kept[1] != 0).sum(1).tolist() == [1] * 6
    assert torch.equal(kept[6], whole) and torch.equal(kept[9], whole)


def test_ppnp_refuses_a_graph_whose_matrix_is_too_large():
    with pytest.raises(OptionError, match="ppnp takes at most 15000 nodes, the graph has 15001"):
        build_model("ppnp", 2, 2)(torch.zeros(15_001, 2), torch.zeros(2, 0, dtype=torch.long))
