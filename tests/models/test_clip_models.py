"""The image classifier against transformers' own CLIP: preprocessing, head, logits, names; and what is refused."""

import json
import shutil

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from image_files import clip_fixture  # noqa: F401 - a fixture
from PIL import Image
from task_files import one_line
from transformers import AutoTokenizer, CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPVisionModelWithProjection

from rmbook.adapters.adapter_file import load_adapter, save_adapter
from rmbook.engine.targets import TargetError
from rmbook.errors import TaskError
from rmbook.methods.apply import apply_method
from rmbook.models.clip import ClipClassifier, classifier_without_weights, load_image_classifier
from rmbook.models.clip_preprocessing import Preprocessing, read_preprocessing
from rmbook.models.files import ModelError
from rmbook.models.language import convert_checkpoint, load_language_model
from rmbook.offline.tiny_language import make_tiny_checkpoint
from rmbook.tasks.images import IMAGE_TASKS

COLOURS = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))


def names(*templates, classes=("cat", "storage tank", "7")) -> tuple:
    return classes, templates


def pixels(count=5, dtype=torch.float32):
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(0)).to(dtype)


# -------------------------------------------------------------------------------------------------------- preprocessing


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 70), st.integers(1, 70), st.integers(1, 40), st.integers(0, 10**6))
def test_images_are_prepared_as_by_transformers(width, height, size, seed):
    colours = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    image = Image.fromarray(colours)
    theirs = CLIPImageProcessor(
        size={"shortest_edge": size}, crop_size={"height": size, "width": size}, image_mean=COLOURS[0],
        image_std=COLOURS[1], resample=3,
    )  # fmt: skip
    found = Preprocessing(size, (size, size), *COLOURS)(image)
    assert found.dtype == torch.float32 and found.shape == (3, size, size)
    assert torch.equal(found, theirs(images=image, return_tensors="pt")["pixel_values"][0]) and found.is_contiguous()


def test_real_images_are_prepared_as_by_transformers_to_the_bit(shared):
    theirs = CLIPImageProcessor()
    ours = Preprocessing(224, (224, 224), tuple(theirs.image_mean), tuple(theirs.image_std))
    paths = sorted(path for path in (shared / "data").rglob("*") if path.suffix in (".png", ".jpg", ".ppm"))
    assert len(paths) > 1000  # each 20th of them here, all of them when this was written
    for path in paths[::20]:
        image = Image.open(path).convert("RGB")
        assert torch.equal(ours(image), theirs(images=image, return_tensors="pt")["pixel_values"][0]), path


def test_an_image_that_would_fill_the_memory_is_refused():
    prepare = Preprocessing(224, (224, 224), *COLOURS)
    with pytest.raises(TaskError, match="1 x 20000 pixels are too thin"):
        prepare(Image.new("RGB", (1, 20_000)))
    assert prepare(Image.new("RGB", (20, 19_000))).shape == (3, 224, 224)


def test_the_file_is_read_in_its_old_and_its_new_form(tmp_path):
    known = {"image_mean": COLOURS[0], "image_std": COLOURS[1], "resample": 3}
    for size, crop in ((8, 8), ({"shortest_edge": 8}, {"height": 8, "width": 8})):
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(known | {"size": size, "crop_size": crop}))
        assert read_preprocessing("m", tmp_path, 8) == Preprocessing(8, (8, 8), *COLOURS)
    bad = [{"size": 8}, {"size": 8, "crop_size": 7}, {"size": 8, "crop_size": 8, "resample": 2}, [], {"size": "8"}]
    bad += [known | {"size": 8, "crop_size": 8, "image_std": [1.0]}]
    for text in ["{", *map(json.dumps, (known | entry if isinstance(entry, dict) else entry for entry in bad))]:
        (tmp_path / "preprocessor_config.json").write_text(text)
        with pytest.raises(ModelError, match=r"^m: preprocessor_config\.json") as error:
            read_preprocessing("m", tmp_path, 8)
        one_line(error)


# --------------------------------------------------------------------------------------------------------- head, logits


def test_logits_are_those_of_clip_for_one_sentence_a_class(clip):  # noqa: F811
    model, preparation = load_image_classifier(*names("a photo of a {}."), clip)
    texts = [f"a photo of a {name}." for name in ("cat", "storage tank", "7")]
    whole = CLIPModel.from_pretrained(clip).eval()
    batch = AutoTokenizer.from_pretrained(clip)(texts, padding=True, return_tensors="pt")
    batch = {name: batch[name] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        wanted = whole(**batch, pixel_values=pixels()).logits_per_image
        found = model(pixels())
        labels = torch.tensor([0, 1, 2, 1, 0])
        loss = model(pixel_values=pixels(), labels=labels).loss
    torch.testing.assert_close(found.logits, wanted, rtol=0, atol=1e-5)
    torch.testing.assert_close(loss, torch.nn.functional.cross_entropy(wanted, labels), rtol=0, atol=1e-5)
    assert found.loss is None and not model.training and preparation == Preprocessing(8, (8, 8), *COLOURS)


def test_several_sentences_are_averaged_normalised_before_and_after(clip):  # noqa: F811
    templates = ("a photo of a {}.", "one {}, seen from very far above.", "{}")
    model, _ = load_image_classifier(*names(*templates), clip, dtype=torch.float64)
    parts = [load_image_classifier(*names(template), clip, dtype=torch.float64)[0].head for template in templates]
    scale = CLIPModel.from_pretrained(clip).logit_scale.exp().item()
    mean = sum(part / part.norm(dim=-1, keepdim=True) for part in parts) / 3
    torch.testing.assert_close(model.head, scale * mean / mean.norm(dim=-1, keepdim=True), rtol=1e-6, atol=1e-6)
    assert model.head.dtype == torch.float64 and model(pixels()).logits.dtype == torch.float64


def test_it_is_transformers_image_encoder_with_a_head_that_no_file_keeps(clip, tmp_path):  # noqa: F811
    model, _ = load_image_classifier(*names("a {}"), clip)
    plain = CLIPVisionModelWithProjection.from_pretrained(clip)
    assert model.state_dict().keys() == plain.state_dict().keys()
    assert all(torch.equal(value, plain.state_dict()[name]) for name, value in model.state_dict().items())
    masking = apply_method(model, "random_masking", targets="mlp", ratio=0.05, seed=1).mask
    with torch.no_grad():
        for values in masking.parameters():
            values.normal_()
        wanted = model(pixels()).logits
    save_adapter(masking, tmp_path / "a.safetensors")
    load_adapter(plain, tmp_path / "a.safetensors")  # so an adapter is of the encoder, and of no task
    features = plain(pixel_values=pixels()).image_embeds
    logits = features / features.norm(dim=-1, keepdim=True) @ model.head.T
    torch.testing.assert_close(logits, wanted, rtol=1e-5, atol=1e-5)


def test_the_paper_s_model_has_the_parameters_that_the_docstring_says():
    model = classifier_without_weights(CLIPConfig(vision_config={"patch_size": 16}))
    total = sum(parameter.numel() for parameter in model.parameters())
    assert f"{total:,}" in ClipClassifier.__doc__ and total == 86_192_640
    lora = apply_method(model, "lora", targets="mlp")
    assert lora.trainable == 12 * 2 * 8 * (768 + 3072)  # 0.86 %; the paper's table says 0.3 %


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_frozen_weights_may_be_narrow_and_logits_stay_float32(clip, dtype):  # noqa: F811
    model, _ = load_image_classifier(*names("a photo of a {}."), clip, dtype=dtype)
    wide, _ = load_image_classifier(*names("a photo of a {}."), clip)
    with torch.no_grad():
        logits = model(pixels()).logits
        assert logits.dtype == model.head.dtype == torch.float32
        torch.testing.assert_close(logits, wide(pixels()).logits, rtol=0.05, atol=0.3)


@pytest.mark.parametrize("method", ["full", "lora", "adalora", "adapter", "bitfit", "structured_masking"])
def test_methods_leave_the_function_as_it_is_and_only_train_the_encoder(method, clip):  # noqa: F811
    model, _ = load_image_classifier(*names("a photo of a {}."), clip)
    wanted, total = model(pixels()).logits.detach(), sum(parameter.numel() for parameter in model.parameters())
    targets = "mlp" if method in ("lora", "adalora", "structured_masking") else None
    applied = apply_method(model, method, targets=targets, ratio=0.02 if targets and "mask" in method else None)
    torch.testing.assert_close(model(pixels()).logits, wanted, rtol=1e-5, atol=1e-5)
    assert applied.total == total and 0 < applied.trainable <= total
    model(pixels(), torch.zeros(5, dtype=torch.int64)).loss.backward()
    assert any(parameter.grad.abs().max() > 0 for parameter in applied.parameters())
    assert model.head.grad is None


# ------------------------------------------------------------------------------------------------------------- refusals


def test_models_of_another_kind_are_refused_in_one_line(clip, tmp_path):  # noqa: F811
    opt = make_tiny_checkpoint(tmp_path / "opt", pretrain_steps=0)
    with pytest.raises(ModelError, match="type 'opt', but a task of images was asked for: give a CLIP model") as error:
        IMAGE_TASKS["CIFAR10"].load_model(opt)
    one_line(error)
    with pytest.raises(ModelError, match="type 'clip', no causal language model") as error:
        load_language_model(clip)
    one_line(error)


@pytest.mark.parametrize(
    ("file", "part"),
    [
        ("preprocessor_config.json", "preprocessor_config"),
        ("model.safetensors", "no weights"),
        ("tokenizer.json", "no tokenizer"),
    ],
)
def test_a_checkpoint_without_a_file_is_refused(file, part, clip, tmp_path):  # noqa: F811
    folder = shutil.copytree(clip, tmp_path / "clip")
    (folder / file).unlink()
    with pytest.raises(ModelError, match=part) as error:
        IMAGE_TASKS["MNIST"].load_model(folder)
    one_line(error)


@pytest.mark.parametrize("how", [{"quant_method": "gptq", "bits": 4}, {"quant_method": "bitsandbytes"}])
def test_quantized_weights_are_refused_as_such(how, clip, tmp_path):  # noqa: F811
    folder = shutil.copytree(clip, tmp_path / "clip")
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(content | {"quantization_config": how}))
    with pytest.raises(ModelError, match="is quantized, which cannot be trained here: give the model as") as error:
        IMAGE_TASKS["MNIST"].load_model(folder)
    one_line(error)


def test_weights_in_an_old_file_are_converted_once(clip, tmp_path):  # noqa: F811
    old = shutil.copytree(clip, tmp_path / "old")
    torch.save(CLIPModel.from_pretrained(clip).state_dict(), old / "pytorch_model.bin")
    (old / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="only in pytorch_model.bin.*convert_checkpoint") as error:
        IMAGE_TASKS["MNIST"].load_model(old)
    one_line(error)
    convert_checkpoint(old, tmp_path / "new")
    found, wanted = (IMAGE_TASKS["MNIST"].load_model(folder)[0] for folder in (tmp_path / "new", clip))
    assert torch.equal(found(pixels()).logits, wanted(pixels()).logits)


def test_incomplete_weights_and_endless_class_names_are_refused(clip, tmp_path):  # noqa: F811
    folder = tmp_path / "half"
    shutil.copytree(clip, folder)
    CLIPVisionModelWithProjection.from_pretrained(clip).save_pretrained(tmp_path / "vision")
    shutil.copy(tmp_path / "vision/model.safetensors", folder)
    with pytest.raises(ModelError, match="lack") as error:
        IMAGE_TASKS["MNIST"].load_model(folder)
    one_line(error)
    with pytest.raises(ModelError, match="no room in the 64 tokens"):
        load_image_classifier(*names("a {}", classes=("x" * 9, "na" * 99)), clip)


def test_methods_and_targets_that_do_not_fit_are_refused(clip):  # noqa: F811
    model, _ = load_image_classifier(*names("a {}"), clip)
    with pytest.raises(TargetError, match="fc1"):
        apply_method(model, "lora", targets="fc3")
    with pytest.raises(TargetError, match="starts from words"):
        apply_method(model, "prefix")
