"""The fast engines: the results of the plain one, whatever is compiled, packed, recorded or run in threads."""
import copy
import dataclasses
import subprocess
import sys
import threading
import time
import warnings

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._dynamo.utils import counters

from self_improve import fast
from self_improve.arithmetic import ForwardAddition, Multiplication, ReverseAddition
from self_improve.blocks import EOS, PAD
from self_improve.fast import (
    CPU_ENGINE,
    GPU_ENGINE,
    CompiledFunction,
    ScriptedFunction,
    StaticCache,
    Threads,
    best_fit_decreasing,
    capture_cuda_graph,
    choose_threads,
    decode_replayed,
    document_causal_mask,
    engine_for,
    flatten_weights,
    is_plain_nope,
    logits_at,
    logits_of,
    map_blocks,
    pack_batch,
    packed_gradients,
    packed_loss,
    run_parallel,
    single_query_attention,
    thread_modes,
    to_bf16_if_cuda,
    weights_of,
)
from self_improve.mazes import MazeHops
from self_improve.model import POSITIONS, Decoder, ModelConfig
from self_improve.optimizers import LRSchedule, TrainConfig, make_optimizers
from self_improve.sampler import PLAIN, decode, matches_greedy
from self_improve.streams import Stream
from self_improve.tasks import Copy, draw_problems
from self_improve.train import (
    Mixture,
    Trainer,
    base_rows,
    include_prompts,
    label_loss,
    set_gradients,
    stack_rows,
    to_rows,
)

CAP = 14
# a vocabulary that holds every task's: one shape of model is compiled once
SMALL = ModelConfig(layers=2, heads=2, width=16, ffn=16, vocab=128, std=0.2)
FAST_ENGINES = [CPU_ENGINE, GPU_ENGINE]


def some_model(**changes):
    return Decoder(dataclasses.replace(SMALL, **changes), 1)


def chatty(seed=0, **changes):
    """Random weights that end some rows early and some late, so that finished rows are dropped on the way."""
    config = ModelConfig(layers=2, heads=2, width=32, ffn=32, std=0.3)
    model = Decoder(dataclasses.replace(config, **changes), seed).double()
    with torch.no_grad(): model.head.weight[EOS] *= 1.7
    return model


def random_norms(model):
    """At their initial 1 a forgotten norm would not show."""
    generator = torch.Generator().manual_seed(0)
    for p in model.parameters():
        if p.dim() == 1: torch.nn.init.uniform_(p, 0.5, 1.5, generator=generator)
    return model


def some_prompts(n=60): return Copy().draw(5, Stream(0, "self", level=5), n).prompt
def copies(level, n): return to_rows(Copy().draw(level, Stream(0, "self", level=level), n))
def uneven(): return stack_rows([copies(level, n) for level, n in ((2, 40), (30, 7), (3, 20), (60, 3), (15, 10))])
def labels_in(rows): return int((rows.length - rows.start).sum())
def gradients(model): return torch.cat([p.grad.flatten() for p in model.parameters()])


@pytest.fixture(scope="module")
def traced_loss():
    """What a GPU compiles, traced and differentiated as there; only the code generator, which is slow, is left out."""
    original, call, model = torch.compile, CompiledFunction(packed_loss), some_model()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "compile", lambda f, **how: original(f, backend="aot_eager", **how))
        for rows in (copies(2, 3), uneven()): call(model, pack_batch(rows)).backward()
    assert call.run is not packed_loss, "it fell back"
    return call


@pytest.fixture
def no_code_generator(traced_loss, monkeypatch): monkeypatch.setattr(fast, "compiled_packed_loss", traced_loss)


# plain and fast

@pytest.mark.parametrize("prompts", [False, True])
@pytest.mark.parametrize("engine", FAST_ENGINES, ids=lambda e: e.name)
@pytest.mark.parametrize("task", [Copy(), ReverseAddition(), MazeHops(nodes=8)], ids=lambda t: t.name)
def test_a_training_step_is_the_plain_one(engine, task, prompts, no_code_generator):
    """In single precision: gradients to 1e-5 of their length, the loss to 1e-6, the clipped step to 1e-4."""
    rows = base_rows(task, task.levels(1, 4), Stream(0, "base"), torch.arange(40))
    if prompts: rows = include_prompts(rows)
    found = []
    for e in (PLAIN, engine):
        model, kept = random_norms(some_model()), []
        def keep(model, loss, kept=kept):
            kept.append(gradients(model).clone())
            return loss
        before = torch.cat([p.detach().flatten().clone() for p in model.parameters()])
        # plain descent, so that the step is the clipped gradient
        optimizers = [torch.optim.SGD(model.parameters(), 0.1)]
        loss = e.train_step(model, optimizers, rows, 0.5, clip=0.3, reduce=keep)
        moved = torch.cat([p.detach().flatten() for p in model.parameters()]) - before
        assert all(p.grad is None for p in model.parameters())
        found.append((float(loss), kept[0], moved))
    (loss, gradient, moved), (fast_loss, fast_gradient, fast_moved) = found
    assert fast_loss == pytest.approx(loss, rel=1e-6)
    assert (fast_gradient - gradient).norm() < 1e-5 * gradient.norm()
    assert (fast_moved - moved).norm() < 1e-4 * moved.norm() and moved.norm() == pytest.approx(0.5 * 0.3, rel=1e-3)


@pytest.mark.parametrize("layers, heads, task", [(1, 1, Copy()), (3, 2, ReverseAddition()), (2, 4, MazeHops(nodes=8))],
                         ids=["copy", "reverse_addition", "maze_hops"])
def test_the_gradient_by_hand_is_torchs(layers, heads, task):
    """Every weight's, in double precision."""
    rows = base_rows(task, task.levels(1, 4), Stream(0, "base"), torch.arange(40))
    config = ModelConfig(layers=layers, heads=heads, width=32, ffn=24, vocab=len(task.vocab), std=0.3)
    model = random_norms(Decoder(config, 0).double())
    p = pack_batch(rows)
    # `packed_loss`, without its rounding to single precision
    logits = logits_at(model, p.tokens, p.where, document_causal_mask(p.document, config))
    expected = F.cross_entropy(logits, p.target)
    expected.backward()
    wanted = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    found = packed_gradients(model, rows, labels_in(rows))
    close = dict(rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(found, expected.detach(), **close)
    for (name, parameter), gradient in zip(model.named_parameters(), wanted, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, **close, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("engine", FAST_ENGINES, ids=lambda e: e.name)
def test_a_share_of_a_batch_has_its_share_of_the_gradient(engine, no_code_generator):
    """Two processes: each divides by the labels of both; one of them may have no rows."""
    rows = uneven()
    parts = []
    for share in (slice(0, 30), slice(30, None), slice(0, 0)):
        model = some_model()
        def note(model, loss):
            if any(p.grad is not None for p in model.parameters()): parts.append((float(loss), gradients(model)))
            return loss
        optimizers, labels = make_optimizers(model, TrainConfig()), labels_in(rows)
        engine.train_step(model, optimizers, rows.take(share), 1e-3, labels=labels, reduce=note)
    model = some_model()
    whole = float(set_gradients(model, rows, labels_in(rows)))
    assert len(parts) == 2 and parts[0][0] + parts[1][0] == pytest.approx(whole, rel=1e-5)
    assert (parts[0][1] + parts[1][1] - gradients(model)).norm() < 1e-5 * gradients(model).norm()


@pytest.mark.parametrize("engine", FAST_ENGINES, ids=lambda e: e.name)
def test_decoding_is_the_plain_one(engine):
    model, prompts = chatty(), some_prompts(300)
    plain, quick = (decode_(model, prompts, CAP, logprobs=True) for decode_ in (decode, engine.decode))
    ends = torch.where((plain.tokens == EOS).any(1), (plain.tokens == EOS).int().argmax(1), CAP)
    assert len(ends.unique()) >= 4 and 0 < (ends < CAP).double().mean() < 1, "rows end at different times or never"
    assert torch.equal(quick.tokens, plain.tokens) and quick.tokens.dtype == torch.uint8
    torch.testing.assert_close(quick.logprob, plain.logprob, atol=1e-5, rtol=0)
    assert engine.decode(model, prompts, CAP).logprob is None


@pytest.mark.parametrize("engine", FAST_ENGINES, ids=lambda e: e.name)
@pytest.mark.parametrize("rows", [None, 7, 1024])
def test_matches_are_the_plain_ones(engine, rows):
    """For outputs as they are, wrong in one token, cut short, without an end, with filling in front and after."""
    model, prompts = chatty(), some_prompts(300)
    answers = F.pad(decode(model, prompts, CAP).tokens, (0, 3))
    row = torch.arange(300)
    answers[row % 5 == 1, 0] = 5
    answers[row % 5 == 2, 1] = EOS
    answers[row % 5 == 2, 2:] = PAD
    answers[(row % 5 == 3)[:, None] & (answers == EOS)] = PAD
    answers[row % 5 == 4, 0] = PAD
    wanted, wanted_logprob = matches_greedy(model, prompts, answers, logprobs=True)
    found, logprob = engine.matches(model, prompts, answers, logprobs=True, rows=rows)
    assert torch.equal(found, wanted) and 3 < wanted.sum() < 200
    # columns that are PAD in every row are not read: there an output without an end has no log-probability
    width = int((answers != PAD).any(0).sum())
    ends = (answers == EOS).any(1)
    torch.testing.assert_close(logprob[ends], wanted_logprob[ends], atol=1e-5, rtol=0)
    torch.testing.assert_close(logprob[:, :width], wanted_logprob[:, :width], atol=1e-5, rtol=0)
    again, nothing = engine.matches(model, prompts, answers, rows=rows)
    assert torch.equal(again, wanted) and nothing is None


@pytest.mark.parametrize("engine", FAST_ENGINES, ids=lambda e: e.name)
@pytest.mark.parametrize("task, level", [(ForwardAddition(), 3), (Multiplication(), (1, 3)), (MazeHops(nodes=8), 3)],
                         ids=["forward_addition", "multiplication", "maze_hops"])
def test_answers_of_any_task(engine, task, level):
    """Whatever the vocabulary and the length: a model's own outputs match, those of another do not."""
    shape, block = draw_problems(task, level, Stream(0, "eval", level=level), 200)
    model, other = (chatty(seed, vocab=len(task.vocab)) for seed in (1, 2))
    cap = task.cap(shape)
    outputs = engine.decode(model, block.prompt, cap).tokens
    assert torch.equal(outputs, decode(model, block.prompt, cap).tokens)
    ends = (outputs == EOS).any(1)
    assert torch.equal(engine.matches(model, block.prompt, outputs)[0], ends) and ends.any()
    assert torch.equal(engine.matches(other, block.prompt, outputs)[0], matches_greedy(other, block.prompt, outputs)[0])


@pytest.mark.parametrize("engine", FAST_ENGINES, ids=lambda e: e.name)
@pytest.mark.parametrize("rows", [1, 7, 59, 60, 1024])
def test_block_size_changes_no_output(engine, rows):
    expected = engine.decode(chatty(), some_prompts(), CAP).tokens
    assert torch.equal(engine.decode(chatty(), some_prompts(), CAP, rows=rows).tokens, expected)


@pytest.mark.parametrize("engine", FAST_ENGINES, ids=lambda e: e.name)
def test_with_a_temperature_the_plain_loop_decodes(engine):
    model, prompts, stream = chatty(), some_prompts(), Stream(0, "sample")
    expected = decode(model, prompts, CAP, 1.3, stream, logprobs=True)
    for rows in (None, 7):
        found = engine.decode(model, prompts, CAP, 1.3, stream, logprobs=True, rows=rows)
        assert torch.equal(found.tokens, expected.tokens)
        torch.testing.assert_close(found.logprob, expected.logprob, atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match="stream"): engine.decode(model, prompts, CAP, 1.3)


@pytest.mark.parametrize("engine", FAST_ENGINES, ids=lambda e: e.name)
@pytest.mark.parametrize("cap", [1, 3, 20])
def test_cap_and_padding(engine, cap):
    found = engine.decode(chatty(), some_prompts(), cap, logprobs=True)
    assert found.tokens.shape == found.logprob.shape == (60, cap)
    after = (found.tokens == EOS).cumsum(1) - (found.tokens == EOS).int() > 0
    assert (found.tokens[after] == PAD).all() and (found.logprob[after] == 0).all()
    assert (found.logprob[~after] < 0).all()
    longer = engine.decode(chatty(), some_prompts(), cap + 5).tokens
    assert torch.equal(found.tokens, longer[:, :cap]), "the cap changed what is said before it"


def test_a_trainer_may_use_any_engine(no_code_generator):
    """The same losses along the way, for the plain and both fast steps."""
    mixture = Mixture(Copy(), [1, 2, 3], Stream(0, "base"), 1000, (copies(6, 20),), (1.0,))
    found = []
    for engine in (PLAIN, *FAST_ENGINES):
        trainer = Trainer(some_model(), TrainConfig(batch=8), engine.train_step)
        found.append([float(loss) for loss in trainer.train_steps(mixture, LRSchedule(6, 1e-3), 1)])
    for losses in found[1:]: assert losses == pytest.approx(found[0], rel=1e-4)


# which engine

def test_the_engine_for_a_model():
    assert engine_for(some_model()) is CPU_ENGINE and engine_for(some_model().double()) is CPU_ENGINE
    for positions in POSITIONS[1:]: assert engine_for(some_model(positions=positions)) is PLAIN
    assert engine_for(torch.nn.Linear(2, 3)) is PLAIN
    assert engine_for(some_model().to("meta")) is PLAIN


def test_nothing_stands_in_for_a_model_that_is_watched_or_changed():
    watched, changed = some_model(), some_model()
    watched.layers[0].register_forward_hook(lambda *_: None)
    changed.forward = lambda *_: None
    class Own(Decoder): pass
    for model in (watched, changed, Own(SMALL)): assert not is_plain_nope(model) and engine_for(model) is PLAIN
    assert is_plain_nope(some_model())


# weights and logits

def test_weights_are_the_models_in_order():
    model = some_model(layers=3)
    flat = flatten_weights(weights_of(model))
    for w, p in zip(flat, model.parameters(), strict=True): assert w.data_ptr() == p.data_ptr() and not w.requires_grad
    w = weights_of(model)
    assert w.layers[1].gate_up.data_ptr() == model.layers[1].feed_forward.gate_up.weight.data_ptr()


def test_logits_in_one_call_are_the_models():
    """All at once, from a column on, and token by token with a cache."""
    model = random_norms(Decoder(ModelConfig(layers=3, heads=2, width=32, ffn=48, std=0.3), 1).double())
    tokens, w = torch.randint(3, 18, (5, 9), generator=torch.Generator().manual_seed(0)), weights_of(model)
    call = ScriptedFunction(logits_of)
    with torch.no_grad(): wanted = model(tokens)
    torch.testing.assert_close(call(w, tokens, 0, 2, 1e-6, [], [], 0), wanted)
    torch.testing.assert_close(call(w, tokens, 4, 2, 1e-6, [], [], 0), wanted[:, 4:])
    keys, values = ([torch.zeros(5, 2, 9, 16, dtype=torch.double) for _ in range(3)] for _ in range(2))
    parts = []
    for part, used in zip(tokens.split([4, 3, 1, 1], 1), (0, 4, 7, 8), strict=True):
        parts.append(call(w, part, 0, 2, 1e-6, keys, values, used))
    torch.testing.assert_close(torch.cat(parts, 1), wanted)


@torch.no_grad()
def test_logits_at_some_positions_are_those_of_the_full_pass():
    model, tokens = chatty(), torch.randint(3, 18, (3, 12), generator=torch.Generator().manual_seed(0))
    full, chosen = model(tokens), torch.rand(3, 12, generator=torch.Generator().manual_seed(0)) < 0.4
    torch.testing.assert_close(logits_at(model, tokens, chosen), full[chosen])
    torch.testing.assert_close(logits_at(model, tokens, chosen.nonzero(as_tuple=True)), full[chosen])
    torch.testing.assert_close(logits_at(model, tokens, (slice(None), slice(7, None))), full[:, 7:])


@pytest.mark.parametrize("keys", [1, 5, 15, 16, 17, 90])
def test_attention_of_a_single_query(keys):
    generator = torch.Generator().manual_seed(keys)
    q, k, v = (torch.randn(6, 4, n, 32, dtype=torch.double, generator=generator) for n in (1, keys, keys))
    torch.testing.assert_close(single_query_attention(q, k, v), F.scaled_dot_product_attention(q, k, v))


# decoding

@pytest.mark.parametrize("cap", [1, 2, 3, 4, 9, 30])
@pytest.mark.parametrize("check", [1, 2, 8, 100])
@torch.inference_mode()
def test_replayed_steps_end_where_the_plain_ones_do(cap, check):
    tokens, _ = decode_replayed(chatty(), some_prompts(), cap, check)
    assert torch.equal(tokens, decode(chatty(), some_prompts(), cap).tokens)


@torch.inference_mode()
def test_only_steps_on_the_same_memory_are_replayed(monkeypatch):
    """What a GPU records must find its inputs and leave its results where they were."""
    recorded = []
    def record(step):
        d = step.__self__
        def places():
            tensors = (d.newest, d.tokens, d.logprob, d.alive, d.column, d.cache.store, d.cache.place)
            return [t.data_ptr() for t in tensors]
        before = places()
        def replay():
            step()
            recorded.append(places() == before)
        return replay
    monkeypatch.setattr(fast, "capture_cuda_graph", record)
    tokens, _ = decode_replayed(chatty(), some_prompts(), CAP)
    assert torch.equal(tokens, decode(chatty(), some_prompts(), CAP).tokens) and len(recorded) > 5 and all(recorded)


def test_finished_rows_stop_costing_work(monkeypatch):
    read, original = [], fast.logits_of
    def watched(w, text, *rest):
        read.append(len(text))
        return original(w, text, *rest)
    monkeypatch.setattr(fast, "logits_of", watched)
    # not compiled, so that it can be watched
    monkeypatch.setattr(fast, "scripted_greedy", fast.greedy)
    tokens = CPU_ENGINE.decode(chatty(), some_prompts(), CAP).tokens
    alive = [int(((tokens[:, :t] == EOS).any(1) == 0).sum()) for t in range(len(read))]
    assert read[0] == 60 and read[-1] < 60
    assert all(a <= r and a >= 0.8 * r for a, r in zip(alive, read, strict=True))


def test_a_static_cache_gives_the_same_logits():
    model, tokens = chatty(), torch.randint(3, 18, (3, 12), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for read in (1, 5, 8):
            cache = StaticCache(model.config, 3, 12, dtype=torch.float64)
            parts = [model(tokens[:, :read], cache)]
            for t in range(read, 12):
                cache.place.fill_(t)
                parts.append(model(tokens[:, t:t + 1], cache, cache.mask()))
            torch.testing.assert_close(torch.cat(parts, 1), model(tokens))


# compiling

def test_what_cannot_be_compiled_runs_as_it_is():
    """One warning that names the function and the cause, then silence."""
    def odd(x):
        "TorchScript knows no generators."
        return sum(v for v in x)
    call, x = ScriptedFunction(odd), torch.arange(4.0)
    with pytest.warns(UserWarning, match="odd could not be compiled and runs slower"): assert call(x) == 6
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert call(x) == 6


@pytest.mark.parametrize("f", [fast.gradient, fast.greedy, fast.logits_of], ids=lambda f: f.__name__)
def test_what_runs_as_it_is_gives_the_same_bits(f):
    model, rows = chatty(), uneven()
    w, packed = weights_of(model), pack_batch(rows)
    if f is fast.gradient:
        mask = document_causal_mask(packed.document, model.config).double()
        chosen = packed.where[0] * packed.tokens.shape[1] + packed.where[1]
        args = (w, packed.tokens, mask, chosen, packed.target, labels_in(rows), 2, 1e-6)
    elif f is fast.greedy: args = (w, rows.tokens[:, :5].long(), CAP, EOS, PAD, 2, 1e-6, 0.9)
    else: args = (w, rows.tokens.long(), 3, 2, 1e-6, [], [], 0)
    def flat(x): return [x] if isinstance(x, torch.Tensor) else [t for part in x for t in flat(part)]
    with torch.no_grad():
        for a, b in zip(flat(f(*args)), flat(ScriptedFunction(f)(*args)), strict=True): assert torch.equal(a, b)


def test_what_torch_compile_refuses_runs_as_it_is(monkeypatch):
    """One warning that names the function and the cause, then silence; and the function's own errors are its own."""
    def refuses(f, **_):
        def fail(*args): raise RuntimeError("no such backend\nand a long trace")
        return fail
    monkeypatch.setattr(torch, "compile", refuses)
    call = CompiledFunction(lambda x: x.sum() * 2)
    cause = r"could not be compiled and runs slower, with the same results \(RuntimeError: no such backend\)$"
    with pytest.warns(UserWarning, match=cause): assert call(torch.ones(3)) == 6
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert call(torch.ones(4)) == 8
        with pytest.raises(AttributeError, match="sum"): call(None)


def test_what_cannot_be_captured_runs_as_it_is(monkeypatch):
    """This torch has no CUDA, which is as good a failure as any."""
    count = []
    # no GPU, no warning
    assert capture_cuda_graph(count.append) == count.append
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", None)
    with pytest.warns(UserWarning, match="runs slower"): assert capture_cuda_graph(count.append) == count.append
    assert count == []


def test_importing_compiles_nothing():
    names = ("scripted_gradient", "scripted_greedy", "scripted_logits", "compiled_packed_loss")
    code = f"import self_improve.fast as f; print(*[getattr(f, n).run for n in {names}])"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.split() == ["None"] * 4


def test_compiling_gives_no_warning_of_its_own():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for f in (fast.gradient, fast.greedy, fast.logits_of):
            assert isinstance(ScriptedFunction(f).compiled(), torch.jit.ScriptFunction)


def test_two_threads_compile_once():
    begun = []
    class Slow(ScriptedFunction):
        def compiled(self):
            begun.append(1)
            time.sleep(0.05)
            return self.f
    call = Slow(lambda x: x)
    threads = [threading.Thread(target=call, args=(1,)) for _ in range(4)]
    for t in threads: t.start()
    for t in threads: t.join()
    assert len(begun) == 1


def test_what_a_gpu_compiles_has_the_same_gradient(traced_loss):
    """For batches of any size and any model of a shape, compiled once."""
    graphs = counters["stats"]["unique_graphs"]
    for n, seed in ((8, 1), (5, 2), (11, 3)):
        model = Decoder(SMALL, seed)
        for rows in (stack_rows([copies(2, n), copies(6, 3)]), copies(6, n)):
            found = []
            for loss in (packed_loss, traced_loss):
                model.zero_grad()
                loss(model, pack_batch(rows)).backward()
                found.append(gradients(model))
            assert (found[0] - found[1]).norm() < 1e-5 * found[0].norm()
    assert counters["stats"]["unique_graphs"] == graphs > 0


def test_a_processor_answers_with_the_model_itself():
    model = chatty()
    assert to_bf16_if_cuda(model) is model


# packing

@given(st.lists(st.integers(1, 60), min_size=1, max_size=60), st.integers(0, 30))
@settings(deadline=None, max_examples=100)
def test_rows_hold_every_string_once(lengths, more):
    width = max(lengths) + more
    begins, rows = best_fit_decreasing(lengths, width)
    taken = [cell for b, n in zip(begins, lengths, strict=True) for cell in range(b, b + n)]
    assert len(set(taken)) == sum(lengths) and max(taken) < rows * width
    for b, n in zip(begins, lengths, strict=True):
        assert b // width == (b + n - 1) // width, "a string runs over the end of its row"
    assert rows <= 1 + 2 * sum(lengths) / width, "any two rows together are more than full"


def test_a_packed_batch_holds_every_token_and_label():
    rows = uneven()
    packed = pack_batch(rows)
    for i in (0, 17, len(rows) - 1):
        mine = (packed.document == i).flatten()
        assert torch.equal(packed.tokens.flatten()[mine], rows.tokens[i, :rows.length[i] - 1].long())
        target = packed.target[packed.document[packed.where] == i]
        assert torch.equal(target, rows.tokens[i, rows.start[i]:rows.length[i]].long())
    assert len(packed.target) == labels_in(rows) and packed.tokens.numel() < 1.1 * (rows.length - 1).sum()


def test_packing_is_refused_where_positions_count():
    with pytest.raises(ValueError, match="'rope'"): packed_loss(some_model(positions="rope"), pack_batch(uneven()))
    absolute = ModelConfig(positions="absolute")
    with pytest.raises(ValueError, match="'nope'"): document_causal_mask(torch.zeros(1, 4), absolute)


@pytest.mark.parametrize("rows, alone", [
    (copies(5, 4), True), (stack_rows([copies(6, 3), copies(5, 3)]), True),
    (stack_rows([copies(6, 3), copies(2, 2)]), False)], ids=["one", "two", "shared"])
def test_a_row_that_holds_one_string_needs_no_mask(rows, alone):
    model, packed = some_model(), pack_batch(rows)
    assert packed.one_per_row == alone
    masked = packed_loss(model, dataclasses.replace(packed, one_per_row=False))
    torch.testing.assert_close(packed_loss(model, packed), masked)


def test_strings_in_one_row_do_not_see_each_other():
    model, generator = chatty(), torch.Generator().manual_seed(0)
    a, b = (torch.randint(3, 18, (1, n), generator=generator) for n in (7, 9))
    both, document = torch.cat([a, b], 1), torch.tensor([[4] * 7 + [2] * 9])
    mask = document_causal_mask(document, model.config)
    torch.testing.assert_close(model(both, mask=mask), torch.cat([model(a), model(b)], 1))
    assert not torch.allclose(model(both)[:, 7:], model(b))


@pytest.mark.parametrize("task, levels, sets", [
    (ReverseAddition(), [1, 2, 3, 4], [(6, 6), (7, 7)]),
    (Multiplication(), Multiplication().levels(1, 3), [(3, 5), (5, 3)]),
    (MazeHops(nodes=10), [1, 2, 3], [(10, 5), (10, 7)])], ids=["reverse_addition", "multiplication", "maze_hops"])
def test_packing_keeps_rows_of_many_shapes_apart(task, levels, sets):
    made = tuple(to_rows(task.draw(shape, Stream(0, "self", level=shape), 30)) for shape in sets)
    rows = Mixture(task, levels, Stream(0, "base"), 1000, made, (1.0, 1.0), base=4.0).rows(2, 0, 40)
    model = some_model(vocab=len(task.vocab))
    torch.testing.assert_close(packed_loss(model, pack_batch(rows)), label_loss(model, rows))


def test_labels_that_end_at_different_places():
    """Sums written forwards: each row's label ends at its own EOS, and the loss does not look behind it."""
    rows, model = to_rows(ForwardAddition().draw((2, 2), Stream(0, "base", level=2), 40)), some_model()
    assert len(rows.length.unique()) == 2
    torch.testing.assert_close(packed_loss(model, pack_batch(rows)), label_loss(model, rows))


# threads

@pytest.fixture
def two_threads():
    """The machine may have any number of cores; afterwards one thread again."""
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)


@pytest.mark.parametrize("mode", fast.THREAD_MODES)
@pytest.mark.parametrize("at_once", [None, 1, 2])
def test_results_come_in_order_and_threads_are_put_back(mode, at_once, two_threads):
    seen = []
    def work(x):
        seen.append((threading.get_ident(), torch.get_num_threads()))
        return x * x
    assert run_parallel(work, [3, 1, 2], at_once=at_once, mode=mode) == [9, 1, 4]
    assert torch.get_num_threads() == 2
    here = threading.get_ident()
    threads = {n for _, n in seen}
    if mode == "parallel": assert here not in {i for i, _ in seen} and threads == {2 if at_once == 1 else 1}
    else: assert {i for i, _ in seen} == {here} and threads == {2 if mode == "all" else 1}


def test_one_item_or_one_core_runs_here(two_threads):
    def where(_): return threading.get_ident(), torch.get_num_threads()
    assert run_parallel(where, [0]) == [(threading.get_ident(), 2)]
    torch.set_num_threads(1)
    assert run_parallel(where, [0, 1]) == [(threading.get_ident(), 1)] * 2


@pytest.mark.parametrize("mode", fast.THREAD_MODES)
def test_a_failure_stops_the_others(mode, two_threads):
    stop = threading.Event()
    def work(x):
        if x == 0: raise RuntimeError("broken")
        # without `stop` this would never end
        if mode == "parallel": assert stop.wait(20)
    with pytest.raises(RuntimeError, match="broken"): run_parallel(work, [0, 1], stop, mode=mode)
    assert torch.get_num_threads() == 2


def test_an_unknown_mode_is_refused():
    wanted = "mode='fast' is not one of parallel, all, one"
    with pytest.raises(ValueError, match=wanted): run_parallel(str, [1], mode="fast")


def test_blocks_cover_all_rows(two_threads):
    a, b = torch.arange(10), torch.arange(10, 20)
    def block(a, b):
        assert torch.is_inference_mode_enabled() and len(a) == len(b) <= 4
        return (a + b).tolist()
    assert sum(map_blocks(block, 4, a, b), []) == (a + b).tolist()


@pytest.mark.parametrize("optimiser", ["adamw", "muon"])
def test_weights_are_the_same_in_every_thread_mode(optimiser, two_threads):
    """Two models; with clipping, for it adds up all gradients."""
    mixture = Mixture(Copy(), [1, 2, 3], Stream(0, "base"), 1000, (copies(12, 50),), (1.0,))
    found = []
    for mode in fast.THREAD_MODES:
        config = TrainConfig(batch=16, optimiser=optimiser, clip=0.1)
        trainers = [Trainer(Decoder(ModelConfig(layers=2), m), config, CPU_ENGINE.train_step) for m in range(2)]
        def train(t): return [float(loss) for loss in t.train_steps(mixture, LRSchedule(8, 1e-3), 1)]
        losses = run_parallel(train, trainers, mode=mode)
        found.append((losses, [p.detach() for t in trainers for p in t.model.parameters()]))
    for losses, weights in found[1:]:
        assert losses == found[0][0]
        for a, b in zip(weights, found[0][1], strict=True): assert torch.equal(a, b)


def test_modes_to_choose_from(two_threads):
    assert thread_modes([some_model()]) == ("all", "one")
    assert thread_modes([some_model()] * 2) == ("parallel", "all", "one")
    assert thread_modes([some_model().to("meta")] * 2) == ("all",)
    torch.set_num_threads(1)
    assert thread_modes([some_model()] * 2) == ("all",)


def test_the_fastest_mode_is_chosen_and_no_model_changes(two_threads, monkeypatch):
    models = [some_model(), some_model(positions="rope")]
    before = [copy.deepcopy(m.state_dict()) for m in models]
    measured, original = [], fast.measure_modes
    def told(f, items, modes, *more):
        measured.append(original(f, items, modes, *more))
        return {mode: {"parallel": 2.0, "all": 1.0, "one": 3.0}[mode] for mode in modes}
    monkeypatch.setattr(fast, "measure_modes", told)
    found = choose_threads(models, copies(5, 8), TrainConfig())
    assert found == Threads("all", {"parallel": 2.0, "all": 1.0, "one": 3.0})
    assert [set(seconds) for seconds in measured] == [{"one"}, set(fast.THREAD_MODES)]
    for model, weights in zip(models, before, strict=True):
        for name, w in model.state_dict().items(): assert torch.equal(w, weights[name])


def test_modes_are_timed_in_turns(monkeypatch):
    """With a clock of ours: the median of all turns counts, and a late turn does not begin."""
    order, now, slow_turns = [], [0.0], {4: 100.0}
    def run(f, items, mode):
        order.append(mode)
        now[0] += slow_turns.get(len(order), {"parallel": 2.0, "one": 3.0}[mode])
    monkeypatch.setattr(fast, "run_parallel", run)
    monkeypatch.setattr(fast.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(fast.time, "monotonic", lambda: now[0])
    assert fast.measure_modes(None, [], ["parallel", "one"], 1e9, 3) == {"parallel": 2.0, "one": 3.0}
    assert order == ["parallel", "one"] * 3
    order.clear()
    fast.measure_modes(None, [], ["parallel", "one"], 7.0, 3)
    assert order == ["parallel", "one"] * 2


def test_measuring_keeps_to_its_budget(two_threads, monkeypatch):
    """A batch that would take too long is cut; one that does not is left whole."""
    steps, original = [], Trainer.step
    def watched(self, rows, lr):
        steps.append(len(rows))
        return original(self, rows, lr)
    monkeypatch.setattr(Trainer, "step", watched)
    models = [some_model() for _ in range(2)]
    assert set(choose_threads(models, copies(30, 200), TrainConfig(), budget=1e-3).seconds) == set(fast.THREAD_MODES)
    assert steps[:fast.COMPILE_STEPS] == [fast.COMPILE_ROWS] * fast.COMPILE_STEPS
    assert 200 in steps and steps[-1] == fast.COMPILE_ROWS
    steps.clear()
    choose_threads(models, copies(5, 20), TrainConfig(), budget=1e6, turns=1)
    # a first step, and one of each model in each mode
    assert steps[fast.COMPILE_STEPS:] == [20] * (1 + 2 * 3)


def test_nothing_is_measured_where_there_is_no_choice():
    found = choose_threads([some_model()] * 3, copies(5, 8), TrainConfig())
    assert found == Threads("all") and str(found) == "the models train in turn, each with all cores"


@pytest.mark.parametrize("seconds, mode", [
    ({"parallel": 1.0, "all": 1.2, "one": 0.9}, "parallel"), ({"parallel": 1.0, "all": 1.2, "one": 0.7}, "one"),
    ({"parallel": 1.0, "all": 0.79, "one": 0.9}, "all"), ({"parallel": 0.5, "all": 1.2, "one": 0.9}, "parallel")])
def test_only_a_clear_gain_takes_members_from_side_by_side(monkeypatch, seconds, mode):
    """Six percent measured in a busy moment once halved the speed of a whole run."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(fast, "measure_modes", lambda f, items, modes, *_: {m: seconds[m] for m in modes})
    assert choose_threads([some_model()] * 3, copies(5, 8), TrainConfig()) == Threads(mode, seconds)


def test_what_was_measured_can_be_read():
    text = str(Threads("one", {"all": 0.5, "one": 0.25}))
    assert text == ("the models train in turn, each with one core (a step of all models takes "
                    "0.500 s in turn, each with all cores; 0.250 s in turn, each with one core)")
