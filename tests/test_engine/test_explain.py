"""Sentences for errors of MMEngine that name nothing that a person wrote."""

import pytest
from mmengine.config import Config
from mmengine.registry import MODELS
from mmengine.runner import Runner

from mmkd.engine.explain import explain
from mmkd.engine.rate_rules import learning_rate_of_zero


def error_of(call: object, *args: object, **kwargs: object) -> Exception:
    with pytest.raises(Exception) as found:
        call(*args, **kwargs)
    return found.value


def test_a_part_without_type_is_named_with_the_nearest_that_has_one() -> None:
    good, bad = dict(type='mmkd.SSIMLoss', data_range=1.0), dict(loss=dict(loss_weight=3))
    cfg = Config(dict(model=dict(parts=[1, dict(losses=dict(loss_ssim=good, loss_ssin=bad))])))
    error = error_of(MODELS.build, cfg.model.parts[1].losses.loss_ssin)
    assert explain(error, dict(model=cfg.model)) == 'model.parts[1].losses.loss_ssin has no "type"; nearest: loss_ssim.'
    assert explain(error) == "A part of the configuration has no \"type\": {'loss': {'loss_weight': 3}}."
    alone = Config(dict(model=dict(neck=dict(channels=1))))
    assert explain(error_of(MODELS.build, alone.model.neck), dict(model=alone.model)) == 'model.neck has no "type".'


def test_an_unknown_argument_of_what_is_not_registered_is_explained() -> None:
    error = error_of(MODELS.build, dict(type='mmkd.SSIMLoss', data_range=1.0, windw_size=3))
    assert 'SSIMOptions takes no argument' in explain(error) and 'nearest: window_size' in explain(error)
    error = error_of(Runner.build_dataloader, dict(bach_size=3, dataset=[1], sampler=dict(type='DefaultSampler')))
    assert explain(error).startswith("DataLoader takes no argument 'bach_size'; nearest: batch_size")


def test_nothing_is_said_of_arguments_that_are_not_known() -> None:
    unknown = TypeError("NeverHeardOf.__init__() got an unexpected keyword argument 'x'")
    assert explain(unknown) == "NeverHeardOf takes no argument 'x'."


@pytest.mark.parametrize(
    ('optimizer', 'parts'),
    [
        (dict(type='SGD', lr=0.1), ()),
        (dict(type='AdamW'), ()),
        (dict(type='Adamm', lr=0.1), ("optimizer.type: no optimizer is registered as 'Adamm'", 'nearest: Adam')),
        (dict(type='SGD', lr='abc'), ("optimizer.lr must be a number, got 'abc'",)),
        (dict(type='SGD', lr=True), ('optimizer.lr must be a number, got True',)),
        (dict(type='SGD', lr=0), ('optimizer.lr is 0: nothing would be learnt',)),
    ],
)
def test_an_optimizer_that_cannot_learn_is_named(optimizer: dict, parts: tuple[str, ...]) -> None:
    found = list(learning_rate_of_zero(Config(dict(optim_wrapper=dict(optimizer=optimizer)))))
    assert len(found) == bool(parts) and all(part in found[0] for part in parts)
