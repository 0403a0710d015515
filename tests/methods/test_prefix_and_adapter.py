"""Prefix tuning and Houlsby adapters against a plain OPT with explicit keys and values, and in generation."""

import pytest
import torch
import torch.nn.functional as F
from more_language_models import tiny
from small_language_models import IDS, logits, small, train_a_little
from transformers import DynamicCache

from rmbook.engine.targets import find_targets
from rmbook.methods.apply import apply_method
from rmbook.methods.architectures import resolve_targets
from rmbook.methods.prefix import prefix_attention, random_words

WORDS = [3, 17, 8, 41, 29]


def randomise(applied, std=0.3):
    torch.manual_seed(5)
    with torch.no_grad():
        for name, parameter in applied.named_parameters():
            if "norm" not in name:
                parameter.normal_(std=std)


def plain_opt(model, ids, extra):
    """Logits of an OPT model from its weights, with prefixes and bottlenecks of `extra`; one sequence (length,)."""
    w = {n.removeprefix("model.decoder."): p.detach() for n, p in model.named_parameters()}
    heads, length = model.config.num_attention_heads, len(ids)

    def norm(x, name):
        return F.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"])

    def linear(x, name):
        y = x @ w[f"{name}.weight"].T + w[f"{name}.bias"]
        down, up = extra.get(f"{name}.houlsby.down.weight"), extra.get(f"{name}.houlsby.up.weight")
        return y if down is None else y + (y @ down.T).clamp(min=0) @ up.T

    def split(x):
        return x.view(length, heads, -1).transpose(0, 1)  # (heads, length, width of a head)

    x = w["embed_tokens.weight"][ids] + w["embed_positions.weight"][torch.arange(length) + 2]
    for block in range(model.config.num_hidden_layers):
        at = f"layers.{block}"
        y = norm(x, f"{at}.self_attn_layer_norm")
        q, k, v = (split(linear(y, f"{at}.self_attn.{part}_proj")) for part in "qkv")
        seen = torch.ones(length, length).tril().bool()
        if f"{at}.self_attn.prefix_keys" in extra:
            k = torch.cat([extra[f"{at}.self_attn.prefix_keys"], k], dim=1)
            v = torch.cat([extra[f"{at}.self_attn.prefix_values"], v], dim=1)
            seen = torch.cat([torch.ones(length, k.shape[1] - length).bool(), seen], dim=1)
        scores = q @ k.transpose(1, 2) / q.shape[-1] ** 0.5
        y = scores.masked_fill(~seen, -torch.inf).softmax(-1) @ v
        x = x + linear(y.transpose(0, 1).reshape(length, -1), f"{at}.self_attn.out_proj")
        y = linear(norm(x, f"{at}.final_layer_norm"), f"{at}.fc1").relu()
        x = x + linear(y, f"{at}.fc2")
    return norm(x, "final_layer_norm") @ w["embed_tokens.weight"].T


@pytest.mark.parametrize("method", ["prefix", "adapter"])
def test_equals_a_plain_opt(method):
    model = tiny("opt", torch.float64)
    applied = apply_method(model, method)
    randomise(applied)
    extra = {n.removeprefix("model.decoder."): p.detach() for n, p in applied.named_parameters()}
    assert len([n for n in extra if "norm" not in n]) == (4 if method == "prefix" else 8)
    for row, got in zip(IDS, logits(model), strict=True):
        torch.testing.assert_close(got, plain_opt(model, row, extra), rtol=0, atol=1e-10)
    assert (logits(tiny("opt", torch.float64)) - logits(model)).abs().max() > 0.01


def test_gradients_of_an_adapter_equal_those_of_the_plain_opt():
    model = tiny("opt", torch.float64)
    applied = apply_method(model, "adapter", train_norms=False)
    randomise(applied)
    own = dict(applied.named_parameters())
    extra = {n.removeprefix("model.decoder."): p.detach().clone().requires_grad_() for n, p in own.items()}
    model(input_ids=IDS, labels=IDS).loss.backward()
    outputs = torch.stack([plain_opt(model, row, extra) for row in IDS])
    F.cross_entropy(outputs[:, :-1].flatten(0, 1), IDS[:, 1:].flatten()).backward()
    for name, parameter in own.items():
        torch.testing.assert_close(
            parameter.grad, extra[name.removeprefix("model.decoder.")].grad, rtol=0, atol=1e-8
        )  # the loss is float32


def test_biases_of_an_adapter_start_at_zero_and_are_trained():
    model = tiny("gpt2")
    start = logits(model)
    applied = apply_method(model, "adapter", bias=True, width=3)
    assert torch.equal(logits(model), start)
    assert applied.trainable == 2 * 2 * (2 * 3 * 32 + 3 + 32) + 2 * 2 * 2 * 32
    train_a_little(model, applied.parameters())
    assert all(p.abs().max() > 0 for n, p in applied.named_parameters() if "houlsby" in n)


@pytest.mark.parametrize("kind", ["opt", "llama", "gpt2", "qwen2"])
def test_a_new_prefix_is_its_words_in_front_of_the_text(kind):
    """Words before the text, the text's positions counted from zero: what the prefix starts from."""
    model = tiny(kind, torch.float64)
    words = torch.tensor(WORDS).expand(len(IDS), -1)
    places = torch.cat([torch.arange(5), torch.arange(IDS.shape[1])]).expand(len(IDS), -1)
    both = torch.cat([words, IDS], dim=1)
    with torch.no_grad():
        # A mask of four dimensions: otherwise transformers takes positions that start again for a second text.
        seen = torch.ones(12, 12, dtype=torch.bool).tril()[None, None]
        wanted = model(input_ids=both, attention_mask=seen, position_ids=places).logits[:, 5:]
    apply_method(model, "prefix", words=WORDS)
    torch.testing.assert_close(logits(model), wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "qwen2"])
def test_a_trained_prefix_equals_a_cache_that_was_filled_with_it(kind):
    model = tiny(kind, torch.float64)
    applied = apply_method(model, "prefix", length=3)
    randomise(applied)
    got, state = logits(model), applied.state()
    applied.remove()
    cache = DynamicCache()
    keys = [value for name, value in state.items() if name.endswith("prefix_keys")]
    values = [value for name, value in state.items() if name.endswith("prefix_values")]
    for layer, (key, value) in enumerate(zip(keys, values, strict=True)):
        cache.update(key.expand(len(IDS), -1, -1, -1), value.expand(len(IDS), -1, -1, -1), layer)
    with torch.no_grad():
        wanted = model(
            input_ids=IDS,
            past_key_values=cache,
            attention_mask=torch.ones(len(IDS), 10, dtype=torch.long),
            position_ids=torch.arange(7).expand(len(IDS), -1),
        ).logits
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-12)


def plain_bert(model, words, extra):
    """Hidden states of an encoder from its own parts, with explicit attention; one text (1, length)."""
    x, heads = model.embeddings(words), model.config.num_attention_heads
    for number, layer in enumerate(model.encoder.layer):
        at, own = f"encoder.layer.{number}", layer.attention.self
        q, k, v = (f(x)[0].view(len(x[0]), heads, -1).transpose(0, 1) for f in (own.query, own.key, own.value))
        if f"{at}.attention.self.prefix_keys" in extra:
            k = torch.cat([extra[f"{at}.attention.self.prefix_keys"], k], dim=1)
            v = torch.cat([extra[f"{at}.attention.self.prefix_values"], v], dim=1)
        y = (q @ k.transpose(1, 2) / q.shape[-1] ** 0.5).softmax(-1) @ v
        for part, end in ((layer.attention.output, "attention.output.dense"), (layer.output, "output.dense")):
            y = y.transpose(0, 1).flatten(1)[None] if end.startswith("attention") else layer.intermediate(x)
            y = F.linear(y, part.dense.weight, part.dense.bias)
            if f"{at}.{end}.houlsby.up.weight" in extra:
                down, up = (extra[f"{at}.{end}.houlsby.{way}.weight"] for way in ("down", "up"))
                y = y + (y @ down.T).clamp(min=0) @ up.T
            x = part.LayerNorm(x + y)
    return x


@pytest.mark.parametrize("method", ["prefix", "adapter"])
def test_an_encoder_equals_a_plain_one_also_beside_padding(method):
    model = tiny("bert", torch.float64)
    with torch.no_grad():
        before = model(input_ids=IDS).last_hidden_state
        applied = apply_method(model, method)
        randomise(applied)
        seen = torch.ones_like(IDS)
        seen[1, 4:] = 0
        both = model(input_ids=IDS, attention_mask=seen).last_hidden_state
        for row, length in ((0, 7), (1, 4)):
            wanted = plain_bert(model, IDS[row : row + 1, :length], applied.state())
            torch.testing.assert_close(both[row : row + 1, :length], wanted, rtol=0, atol=1e-12)
        applied.remove()
        assert torch.equal(model(input_ids=IDS).last_hidden_state, before)


def test_an_encoders_prefix_starts_as_the_keys_and_values_of_its_words():
    model, got = tiny("bert", torch.float64), {}
    layers = {n: m for n, m in model.named_modules() if n.endswith((".key", ".value"))}
    hooks = [m.register_forward_hook(lambda m, i, y, n=n: got.__setitem__(n, y[0])) for n, m in layers.items()]
    with torch.no_grad():
        model(input_ids=torch.tensor([WORDS]))
    for hook in hooks:
        hook.remove()
    state = apply_method(model, "prefix", words=WORDS).state()
    for name, rows in got.items():
        start = state[f"{name.rpartition('.')[0]}.prefix_{name.rpartition('.')[2]}s"]
        torch.testing.assert_close(start.transpose(0, 1).flatten(1), rows, rtol=0, atol=1e-12)


def test_a_preset_of_an_encoder_tells_its_two_output_layers_apart():
    model = tiny("bert")
    layers = {part: find_targets(model, resolve_targets(model, part)) for part in ("o_proj", "mlp", "all_linear")}
    ends = {part: {name.split("layer.")[1] for name in found} for part, found in layers.items()}
    assert ends["o_proj"] == {f"{i}.attention.output.dense" for i in (0, 1)}
    assert ends["mlp"] == {f"{i}.{part}.dense" for i in (0, 1) for part in ("intermediate", "output")}
    assert len(ends["all_linear"]) == 2 * 6


@pytest.mark.parametrize("kind", ["opt", "llama", "mistral", "gpt2", "qwen2"])
def test_shapes_are_known_without_numbers_and_a_sliding_window_cuts_nothing_off(kind):
    real = apply_method(tiny(kind), "prefix")  # Mistral's window is 4, shorter than the prefix
    empty = apply_method(tiny(kind).to("meta"), "prefix")
    shapes = {name: p.shape for name, p in real.named_parameters()}
    assert shapes == {name: p.shape for name, p in empty.named_parameters()}
    assert {shape[1] for shape in shapes.values()} == {5} and len(shapes) == 4


def test_words_are_real_ones_and_differ_by_seed():
    config = tiny("gpt2").config  # its special token is 1
    drawn = [random_words(config, 49, seed) for seed in range(3)]
    for words in drawn:
        assert sorted(words) == [0, *range(2, 50)]
    assert drawn[0][:5] != drawn[1][:5]


def test_a_model_in_training_mode_gets_the_activations_without_dropout():
    calm, noisy = small("opt"), small("opt").train()
    assert noisy.config.dropout > 0
    one, two = (apply_method(model, "prefix") for model in (calm, noisy))
    assert all(torch.equal(value, two.state()[name]) for name, value in one.state().items())
    assert noisy.training and all(module.training for module in noisy.modules())


@pytest.mark.parametrize("kind", ["opt", "llama", "mistral", "gpt2", "qwen2"])
@pytest.mark.parametrize("method", ["prefix", "adapter"])
class TestGeneration:
    def applied(self, kind, method):
        applied = apply_method(tiny(kind, torch.float64), method)
        randomise(applied)
        return applied

    def test_cached_equals_uncached_and_each_step_is_the_best_token(self, kind, method):
        model = self.applied(kind, method).model
        settings = dict(max_new_tokens=6, min_new_tokens=6, do_sample=False, pad_token_id=0)
        settings["attention_mask"] = torch.ones_like(IDS)
        cached = model.generate(IDS, use_cache=True, **settings)
        assert torch.equal(cached, model.generate(IDS, use_cache=False, **settings))
        eos = model.config.eos_token_id
        for length in range(7, 13):
            with torch.no_grad():
                scores = model(input_ids=cached[:, :length]).logits[:, -1]
            if eos is not None:
                scores[:, eos] = -torch.inf  # min_new_tokens
            assert torch.equal(scores.argmax(-1), cached[:, length])
        assert model.generate(IDS, num_beams=3, **settings).shape == (2, 13)

    def test_left_padding_does_not_matter(self, kind, method):
        model = self.applied(kind, method).model
        short = IDS[:1, 3:]
        padded = torch.cat([torch.zeros(1, 3, dtype=torch.long), short], dim=1)
        batch, seen = torch.cat([padded, IDS[1:]]), torch.ones(2, 7, dtype=torch.long)
        seen[0, :3] = 0
        settings = dict(max_new_tokens=5, min_new_tokens=5, do_sample=False, pad_token_id=0)
        together = model.generate(batch, attention_mask=seen, **settings)
        for row, alone in ((0, short), (1, IDS[1:])):
            generated = model.generate(alone, attention_mask=torch.ones_like(alone), **settings)
            assert torch.equal(together[row, 7:], generated[0, alone.shape[1] :])
        places = (seen.cumsum(1) - 1).clamp(min=0)
        with torch.no_grad():
            joint = model(input_ids=batch, attention_mask=seen, position_ids=places).logits
            torch.testing.assert_close(joint[0, 3:], model(input_ids=short).logits[0], rtol=0, atol=1e-10)
        assert torch.isfinite(joint).all()

    def test_gradient_checkpointing_gives_the_same_gradients(self, kind, method):
        plain, saving = self.applied(kind, method), self.applied(kind, method)
        saving.model.gradient_checkpointing_enable({"use_reentrant": False})
        gradients = []
        for applied in (plain, saving):
            applied.model.train()
            for module in applied.model.modules():
                if isinstance(module, torch.nn.Dropout):
                    module.p = 0.0
                if hasattr(module, "dropout") and isinstance(module.dropout, float):
                    module.dropout = 0.0
            applied.model(input_ids=IDS, labels=IDS).loss.backward()
            gradients.append([p.grad for p in applied.parameters()])
        for one, two in zip(*gradients, strict=True):
            assert one.abs().max() > 0
            torch.testing.assert_close(one, two, rtol=0, atol=1e-12)


def test_a_model_with_eager_attention_gets_it_back():
    model = tiny("llama")
    model.set_attn_implementation("eager")
    start = logits(model)
    applied = apply_method(model, "prefix")
    assert not torch.allclose(logits(model), start)
    applied.remove()
    assert model.config._attn_implementation == "eager" and torch.equal(logits(model), start)


def test_attention_without_a_mask_is_refused():
    heads = torch.zeros(1, 2, 3, 4)
    with pytest.raises(ValueError, match="explicit mask"):
        prefix_attention(torch.nn.Module(), heads, heads, heads, None)


def test_mixed_precision_reaches_the_prefix_and_the_adapter():
    for method in ("prefix", "adapter"):
        applied = apply_method(tiny("llama"), method)
        randomise(applied)
        exact = logits(applied.model)
        with torch.autocast("cpu", torch.bfloat16):
            loss = applied.model(input_ids=IDS, labels=IDS).loss
            rounded = logits(applied.model)
        loss.backward()
        assert all(p.grad.dtype == torch.float32 and p.grad.abs().max() > 0 for p in applied.parameters())
        assert 0 < (rounded - exact).abs().max() < 0.05 * exact.abs().max()
