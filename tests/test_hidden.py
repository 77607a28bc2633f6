"""Mixing in feature space: which layer is mixed and how, checkpointed and compiled models, nests of outputs."""

import copy
from collections import UserDict, namedtuple

import pytest
import torch
from common import BS, METHODS, C, N, classes, cnn, images, learner, no_hooks, on, trained
from fastai.torch_core import set_seed
from fastcore.basics import fastuple
from reference import close, slow_mix
from scipy import stats
from torch import nn
from torch.utils.checkpoint import checkpoint

from mixaug import ManifoldMixup, Mix, OutputMixup, PatchUp, sample_partner
from mixaug.methods.output import blend_floats


class Join(nn.Module):
    def forward(self, pair):
        return pair[0] @ pair[1].T


class Net(nn.Module):
    """A network whose forward pass is a function."""

    def __init__(self, flow):
        super().__init__()
        self.first, self.last, self.flow = nn.Linear(60, 60), nn.Linear(60, C), flow

    def forward(self, x):
        return self.flow(self, x.flatten(1))


def places(learn):
    return {row.mixed_layer for row in learn.spy.batches}


class TestLayers:
    @pytest.mark.parametrize("input_mixup", [True, False])
    def test_given_modules_and_the_input_are_chosen_equally_often(self, input_mixup):
        model = nn.Sequential(nn.Flatten(), nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3))
        cb = ManifoldMixup(0.4, modules=[model[4], model[1]], input_mixup=input_mixup)
        layers = [row.mixed_layer for row in trained(cb, torch.randn(600, 2), model=model, bs=2).spy.batches]
        assert list(cb.hidden_layers) == ["4", "1"]
        assert set(layers) == {"1", "4"} | ({None} if input_mixup else set())
        assert stats.chisquare([layers.count(layer) for layer in set(layers)]).pvalue > 1e-6

    def test_integer_inputs_are_never_chosen_but_their_embeddings(self):
        model = nn.Sequential(nn.Embedding(10, 4), nn.Flatten(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, C))
        assert places(trained(ManifoldMixup(), torch.randint(0, 10, (22, 3)), model=model, fit=(6,))) == {"0", "2"}

    @pytest.mark.parametrize(
        ("flow", "modules", "error", "match"),
        [
            (None, [nn.Conv2d(1, 1, 1)], ValueError, "modules must be"),
            (None, None, ValueError, r"modules=.*mixable"),
            (lambda net, x: net.last(x), None, ValueError, r"modules=.*mixable"),
            (lambda net, x: net.last(x), lambda net: [net.first], ValueError, "'first'.*no run.*modules="),
            (lambda net, x: net.last(net.first(x) + x), lambda net: [net.first], ValueError, "around it.*verify=False"),
            (lambda net, x: net.last(torch.cat([net.first(t) for t in x.chunk(2)])), None, ValueError, "modules="),
            (lambda net, x: net.last(net.eval().first(x)), None, RuntimeError, "eval mode"),
        ],
    )
    def test_a_model_that_cannot_be_mixed_raises(self, flow, modules, error, match):
        model = Net(flow) if flow else nn.Sequential(nn.Flatten(), nn.Linear(60, C))
        modules = modules(model) if callable(modules) else modules
        learn = learner(ManifoldMixup(modules=modules, input_mixup=False), images(n=BS), model=model)
        with pytest.raises(error, match=match):
            learn.fit(1)
        assert no_hooks(model)

    def test_a_copy_of_the_model_made_while_training_is_not_mixed(self):
        x, teachers, model = images(n=BS), [], cnn()

        def look(learn):
            if learn.training:
                teachers.append((copy.deepcopy(learn.model)(x), learn.pred.detach()))

        trained(ManifoldMixup(8, input_mixup=False), x, model=model, cbs=[on("after_pred", look, -1)], fit=(1, 0.0))
        ((teacher, pred),) = teachers
        close(teacher, model(x))
        assert not torch.allclose(teacher, pred)


@pytest.mark.parametrize("hard", [False, True])
class TestPatchUp:
    def test_a_box_of_the_feature_map_is_mixed(self, hard):
        learn = trained(PatchUp(hard=hard), fit=(20, 0.0))
        sizes = {None: (5, 6), "0": (5, 6), "2": (3, 4)}
        assert places(learn) == set(sizes)
        for row in learn.spy.batches:
            mask = row.mix.mask
            assert mask.shape[1:] == sizes[row.mixed_layer]
            assert (mask.dtype == torch.bool) == hard
            for m in mask:
                inside, box = m[m < 1], (m < 1).nonzero()
                assert hard or len(inside) == 0 or (len(inside.unique()) == 1 and inside[0] >= 0.5)
                assert len(box) == 0 or len(box) == (box.max(0).values - box.min(0).values + 1).prod()
            close(row.lam, mask.float().mean((1, 2)))

    def test_a_loss_that_is_no_average_gets_one_box(self, hard):
        loss = lambda pred, y: nn.functional.cross_entropy(pred, y) ** 2  # noqa: E731
        for row in trained(PatchUp(hard=hard), loss=loss, fit=(4, 0.01)).spy.batches:
            assert (row.mix.mask == row.mix.mask[:1]).all()
            lam = row.lam[0]
            close(row.loss, lam * loss(row.pred, *row.y0) + (1 - lam) * loss(row.pred, *row.partners))

    def test_labels_are_averaged_by_lam_whatever_their_size(self, hard):
        model = nn.Sequential(nn.Conv1d(2, 4, 4, stride=4), nn.ReLU(), nn.Flatten(), nn.Linear(20, 5))
        mixer = PatchUp(hard=hard, input_mixup=False)
        for row in trained(mixer, images((20,)), torch.rand(N, 5), model, nn.MSELoss(), fit=(2,)).spy.batches:
            assert row.mix.mask.shape[1:] == (5,)
            close(row.y[0], slow_mix(row.y0[0], Mix(row.mix.partner, row.lam)))

    def test_layers_without_positions_and_dense_targets_raise_value_error(self, hard):
        model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 8), nn.ReLU(), nn.Linear(8, C))
        with pytest.raises(ValueError, match=r"modules=.*ManifoldMixup"):
            trained(PatchUp(hard=hard, modules=[model[3]]), model=model)
        learn = trained(PatchUp(hard=hard), model=model)  # finds the others
        assert list(learn.patch_up.hidden_layers) == ["0"]
        for y in (classes(5, 6), torch.rand(N, C, 5, 6), classes(10, 12)):
            with pytest.raises(ValueError, match="CutMix"):
                trained(PatchUp(hard=hard, modules=[model[0]]), y=y, model=model, loss=lambda pred, y: pred.sum())

    def test_dense_targets_are_cut_where_the_layer_is_if_this_is_said(self, hard):
        model, loss = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, C, 1)), nn.MSELoss()
        mixer = PatchUp(hard=hard, targets="mask", modules=[model[0]])
        for row in trained(mixer, y=torch.rand(N, C, 5, 6), model=model, loss=loss, fit=(2, 0.01)).spy.batches:
            close(row.loss, loss(row.pred, slow_mix(row.y0[0], row.mix)))
        if hard:
            y, loss = classes(5, 6), nn.CrossEntropyLoss()
            for row in trained(mixer, y=y, model=model, loss=loss, fit=(2, 0.01)).spy.batches:
                close(row.loss, loss(row.pred, slow_mix(row.y0[0], row.mix)))

    @pytest.mark.parametrize("rule", ["average", "keep", None])
    def test_targets_that_another_callback_changed_are_used_or_raise_type_error(self, hard, rule):
        change = on("before_batch", lambda learn: setattr(learn, "yb", (learn.y * 100,)), 5)
        model, loss = cnn(), nn.MSELoss()
        learn = learner(PatchUp(hard=hard, targets=rule), y=torch.rand(N, C), model=model, loss=loss, cbs=[change])
        if rule == "keep":
            learn.fit(2, 0.01)
            for row in learn.spy.batches:
                close(row.loss, loss(row.pred, row.y0[0] * 100))
            return
        with pytest.raises(TypeError, match=r"mixer\.order = 50"):
            learn.fit(2, 0.01)


# Outputs in nests

Pair = namedtuple("Pair", "left right")


class Output(dict):
    def update(self, *args):
        raise RuntimeError("as Hugging Face's do")


def test_every_floating_point_tensor_of_the_batch_is_mixed():
    a, b, i, odd = torch.randn(4, 3), torch.randn(4, 2, 2).double(), torch.arange(4), torch.randn(3)
    mix = Mix(sample_partner(4), torch.rand(4))
    nest = lambda a, b: (odd, [b, i], {"a": a, "none": None}, Pair(a, fastuple(b, i)), Output(a=a, b=UserDict(b=b)))  # noqa: E731
    given = nest(a, b)
    got = blend_floats(mix, given)
    assert str(got) == str(nest(mix.blend(a), mix.blend(b)))
    assert [type(part) for part in got] == [type(part) for part in given]
    with pytest.raises(ValueError, match="modules="):
        blend_floats(mix, [torch.randn(2, 3), i])


class WithTable(nn.Module):
    """Returns a table beside its features, with as many rows as a batch has by accident."""

    def __init__(self):
        super().__init__()
        self.linear, self.table = nn.Linear(60, C), nn.Parameter(torch.randn(BS, C))

    def forward(self, x):
        return self.linear(x.flatten(1)), self.table


def test_a_table_with_as_many_rows_as_samples_is_not_mixed():
    loss = lambda pred, y: nn.functional.cross_entropy(pred[0] @ pred[1].T, y)  # noqa: E731
    model, x = WithTable(), images(n=2 * BS)
    for row in trained(OutputMixup(8), x, model=model, loss=loss, fit=(2, 0.0)).spy.batches:
        close(row.pred[1], model.table)
        close(row.pred[0], slow_mix(model.linear(row.x0[0].flatten(1)), row.mix))
    seen, hidden = [], nn.Sequential(model, Join())
    hidden[1].register_forward_pre_hook(lambda m, args: seen.append(args[0][1]))
    model.register_forward_hook(lambda m, args, out: (out[0], out[1] * 1))
    trained(ManifoldMixup(8, modules=[model], input_mixup=False), x, model=hidden, fit=(2, 0.0))
    for table in seen:
        assert len(table) < 3 or torch.equal(table, model.table)


def test_a_model_that_is_replaced_in_the_fit_raises_runtime_error():
    change = on("after_batch", lambda learn: setattr(learn, "model", copy.deepcopy(learn.model)))
    with pytest.raises(RuntimeError, match="replaced in the fit"):
        trained(ManifoldMixup(input_mixup=False), cbs=[change])


def test_output_mixup_mixes_whatever_the_model_returns():
    model = Net(lambda net, x: (net.last(x), net.first(x)))
    loss = lambda pred, y: nn.functional.cross_entropy(pred[0], y)  # noqa: E731
    (row,) = trained(OutputMixup(), images(n=BS), model=model, loss=loss, fit=(1, 0.0)).spy.batches
    for got, original in zip(row.pred, model(row.x0[0]), strict=True):
        close(got, slow_mix(original, row.mix))


# Layers that run in other ways


class Checkpointed(nn.Module):
    """Discards the activations of its middle and computes them again in the backward pass."""

    def __init__(self, reentrant):
        super().__init__()
        self.first, self.last, self.reentrant = nn.Linear(60, 16), nn.Linear(16, C), reentrant
        self.middle = nn.Sequential(nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh())

    def forward(self, x):
        x = self.first(x.flatten(1))
        if self.reentrant is None or not self.training:
            return self.last(self.middle(x))
        return self.last(checkpoint(self.middle, x, use_reentrant=self.reentrant))


@pytest.mark.parametrize("reentrant", [True, False])
def test_activation_checkpointing_mixes_again_in_the_backward_pass(reentrant):
    state, x, y, results = Checkpointed(None).state_dict(), images(), classes(), []
    for how in (None, reentrant):
        model = Checkpointed(how)
        model.load_state_dict(state)
        set_seed(1)
        mixer = ManifoldMixup(8, modules=[model.middle[0], model.middle[2]], input_mixup=False)
        trained(mixer, x, y, model, fit=(2, 0.1))
        results.append(model.state_dict())
    assert all(torch.allclose(v, results[1][k], atol=1e-7) for k, v in results[0].items())


def compiled(how, backend, graphs):
    def count(module, inputs):
        graphs.append(module)
        return module if backend == "eager" else torch._dynamo.lookup_backend(backend)(module, inputs)

    model = cnn()
    if how == "wrapped":
        return torch.compile(model, backend=count)
    if how == "its forward":
        model.forward = torch.compile(model.forward, backend=count)
    for part in {"in place": [model], "its layers": [model[0], model[2]]}.get(how, []):
        part.compile(backend=count)
    return model


def losses(method, how=None, backend="eager", before=None, prob=1.0):
    """Return the loss of every batch, and the number of graphs that were compiled for them."""
    torch.compiler.reset()
    set_seed(3)
    graphs, x, y = [], images(n=24), classes(n=24)
    learn = learner(None, x, y, compiled(how, backend, graphs))
    if before == "validate":
        learn.validate()
    if before == "fit":
        learn.fit(1, 0.0)
    learn.spy.batches.clear()
    learn.opt = None
    learn.add_cb(method(prob=prob))
    set_seed(5)
    learn.fit(4, 0.01)
    return [row.loss.item() for row in learn.spy.batches], len(graphs)


HOWS = "wrapped", "in place", "its layers", "its forward"
BEFORE = None, "validate", "fit"


def test_output_mixup_warns_once_of_tensors_without_a_row_for_each_sample():
    class Heads(nn.Module):
        def __init__(self):
            super().__init__()
            self.net, self.side = cnn(), nn.Linear(C, 2)
            self.table = nn.Parameter(torch.randn(3, 2))

        def forward(self, x):
            h = self.net(x)
            return h, torch.stack([self.side(h)] * 2), self.table

    loss = lambda pred, y: nn.functional.cross_entropy(pred[0], y) + pred[1].mean()  # noqa: E731
    with pytest.warns(UserWarning, match="Tensor 1 of the prediction has no row for each sample") as told:
        trained(OutputMixup(), images(n=2 * BS), model=Heads(), loss=loss, fit=(2, 0.0))
    assert len(told) == 1


OTHERS = [*(METHODS[name] for name in ("MixUp", "CutMix", "OutputMixup")), PatchUp]
COMPILED = [(ManifoldMixup, how, before) for how in HOWS for before in BEFORE]
COMPILED += [(method, how, BEFORE[(i + j) % 3]) for i, method in enumerate(OTHERS) for j, how in enumerate(HOWS)]


@pytest.mark.parametrize(("method", "how", "before"), COMPILED)
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # dynamo looks at inputs
def test_a_compiled_model_trains_as_it_does_without(method, how, before):
    expected, _ = losses(method, before=before)
    got, graphs = losses(method, how, before=before)
    assert got == pytest.approx(expected, abs=1e-6)
    # At most: with and without mixing, in validation, and twice what was before
    assert graphs <= (10 if how == "its layers" else 5)


@pytest.mark.parametrize("prob", [1.0, 0.5])
def test_a_compiled_model_trains_as_it_does_without_through_autograd_and_unmixed_batches(prob):
    expected, _ = losses(ManifoldMixup, prob=prob)
    got, graphs = losses(ManifoldMixup, "wrapped", "aot_eager", prob=prob)
    assert got == pytest.approx(expected, abs=1e-6)
    assert graphs <= 3


def test_a_compiled_model_predicts_unmixed_after_training():
    torch.compiler.reset()
    x, model = images(n=24), compiled("wrapped", "eager", [])
    learn = trained(ManifoldMixup(8, modules=[*model._orig_mod[0:3:2]]), x, model=model, fit=(2, 0.01))
    assert places(learn) <= {None, "0", "2"}  # not those of the wrapper
    close(learn.get_preds()[0], model._orig_mod.eval()(x).softmax(1).detach())
    assert no_hooks(model)
