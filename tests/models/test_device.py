"""A model that FSDP shards is given its inputs where it computes, wherever its shards are kept.

Under CPU offload they are in main memory while a GPU computes. Here the CPU computes, and the shards are on no device.
"""

from functools import partial

import pytest
import torch
import torch.distributed as dist
from image_files import clip_fixture  # noqa: F401 - a fixture
from more_language_models import tiny
from PIL import Image
from test_encoding import byte_level
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard

from rmbook.models.device import model_device
from rmbook.models.encoding import Encoding, Question
from rmbook.models.generation import generate_answers
from rmbook.models.likelihood import option_log_probabilities
from rmbook.models.option_scores import score_options
from rmbook.tasks.image_batches import ImageClassification, predict_classes
from rmbook.tasks.image_example import ImageExample
from rmbook.tasks.images import IMAGE_TASKS
from rmbook.training.objectives import Answering, Classification, OptionChoice

OPTIONS = [Encoding([5, 6, 7, *option], len(option)) for option in ([8], [9, 10], [11, 12, 13])]
QUESTIONS = [Question(tuple(OPTIONS), gold) for gold in (0, 2)]
IMAGES = [ImageExample("MNIST", (n,), f"image {n}", partial(Image.new, "RGB", (8, 8), (n, 90, 200))) for n in range(3)]


@pytest.fixture(scope="module")
def mesh():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


class Offloaded(nn.Module):
    """What FSDP2 makes of a model, between two calls: its parameters are shards, and without numbers here."""

    def __init__(self, model: nn.Module, mesh):
        super().__init__()
        for number, parameter in enumerate(model.parameters()):
            if parameter.dim():
                shard = DTensor.from_local(parameter.detach().to("meta"), mesh, [Shard(0)], run_check=False)
                self.register_parameter(f"shard_{number}", nn.Parameter(shard))
        self.whole = [model]  # in a list: none of its modules
        self.generation_config = getattr(model, "generation_config", None)

    def forward(self, *arguments, **batch):
        return self.whole[0](*arguments, **batch)

    def generate(self, **given):
        return self.whole[0].generate(**given)


def test_the_device_is_where_a_shard_takes_part_in_computations(mesh):
    model = nn.Linear(3, 2)
    offloaded = Offloaded(model, mesh)
    assert next(offloaded.parameters()).device.type == "meta"
    assert model_device(offloaded) == model_device(model) == torch.device("cpu")
    assert model_device(model.to("meta")) == torch.device("meta")


@pytest.mark.parametrize(
    "answer",
    [
        lambda model: option_log_probabilities(model, OPTIONS),
        lambda model: score_options(model, [OPTIONS, OPTIONS[:2]]),
        lambda model: score_options(model, [[Encoding([3, 4], 1), Encoding([5, 6], 1)]]),  # with no token in common
        lambda model: OptionChoice().loss(model, QUESTIONS),
        lambda model: Answering().evaluate(model, QUESTIONS)[0],
    ],
    ids=["likelihood", "scores", "scores one by one", "option choice", "answering"],
)
def test_language_models_answer_as_without_shards(answer, mesh):
    model = tiny("opt", torch.float64)
    with torch.no_grad():
        found, wanted = answer(Offloaded(model, mesh)), answer(model)
    torch.testing.assert_close(found, wanted, rtol=0, atol=0)


def test_language_models_write_as_without_shards(mesh):
    model, tokenizer = tiny("opt", torch.float64), byte_level("</s>")
    found, wanted = (
        generate_answers(one, tokenizer, OPTIONS, max_new_tokens=3) for one in (Offloaded(model, mesh), model)
    )
    assert found == wanted


def test_image_models_answer_as_without_shards(mesh, clip):  # noqa: F811
    model, preprocessing = IMAGE_TASKS["MNIST"].load_model(clip)
    offloaded = Offloaded(model, mesh)
    batch = [{"pixel_values": preprocessing(image.read()), "labels": torch.tensor(image.gold[0])} for image in IMAGES]
    for objective, examples in ((Classification(), batch), (ImageClassification(preprocessing), IMAGES)):
        assert objective.loss(offloaded, examples).item() == objective.loss(model, examples).item()
        found, wanted = (objective.evaluate(one, examples) for one in (offloaded, model))
        assert found == wanted
    assert predict_classes(offloaded, preprocessing, IMAGES) == predict_classes(model, preprocessing, IMAGES)
