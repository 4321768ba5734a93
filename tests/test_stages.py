"""The specs' own arithmetic: sizes, windows, formats, and what ``check`` refuses."""

import itertools

import pytest
import torch
from torch.nn import functional as TF

from fastcnn import LRN, MaxPool
from fastcnn.stages import NO_PLACE, Stages, check, lrn_alone, memory_format, pool_alone


def torchs_size(pool, size):
    try:
        return TF.max_pool2d(torch.zeros(1, 1, *size), *pool.pairs, pool.ceil_mode).shape[2:]
    except RuntimeError:
        return None


def our_size(pool, size):
    try:
        return pool.output_size(*size)
    except RuntimeError:
        return None


@pytest.mark.parametrize("ceil_mode", [False, True])
def test_a_pooled_size_is_torchs(ceil_mode):
    for kernel, stride, padding, dilation in itertools.product(
        (1, 2, 3, 5), (1, 2, 3, 7), (0, 1, 2), (1, 2, 3)
    ):
        if 2 * padding <= kernel:
            pool = MaxPool((kernel, 2), (stride, 1), (padding, 0), (dilation, 1), ceil_mode)
            other = MaxPool((2, kernel), (1, stride), (0, padding), (1, dilation), ceil_mode)
            for size in range(12):
                assert our_size(pool, (size, 9)) == torchs_size(pool, (size, 9)), (pool, size)
                assert our_size(other, (9, size)) == torchs_size(other, (9, size)), (other, size)


def test_padding_is_at_most_half_a_window_in_both_directions():
    assert MaxPool((4, 2), padding=(2, 1)).pairs == ((4, 2), (4, 2), (2, 1), (1, 1))
    for padding in ((2, 2), (3, 1), (3, 2)):
        with pytest.raises(RuntimeError, match=r"at most half of kernel size, but got padding=\("):
            MaxPool((4, 2), padding=padding)


@pytest.mark.parametrize("name", ["kernel_size", "stride", "padding", "dilation"])
@pytest.mark.parametrize("value", [(-1, 2), (2, -1)])
def test_a_size_below_the_least_is_named(name, value):
    with pytest.raises(RuntimeError, match=rf"max_pool2d: {name} must be at least \d, but got \({value[0]}"):
        MaxPool(**{"kernel_size": 4, name: value})


def test_a_window_reaches_over_its_dilated_places():
    assert MaxPool((3, 2), dilation=(2, 5)).extent == (5, 6)
    assert MaxPool((1, 4)).extent == (1, 4)


@pytest.mark.parametrize("value", [(2, 3), [2, 3]], ids=repr)
def test_lists_become_tuples(value):
    assert pool_alone(value) == Stages(relu=False, pool=MaxPool((2, 3)))
    assert MaxPool(value).pairs == ((2, 3), (2, 3), (0, 0), (1, 1))
    assert MaxPool(3, stride=type(value)()).pairs[1] == (3, 3)  # torch's default


@pytest.mark.parametrize(("stages", "name"), [
    (Stages(), "relu"),
    (Stages(relu=False), ""),
    (Stages(lrn=LRN(3), pool=MaxPool((3, 4), (2, 1))), "relu, lrn 3, pool 3/2"),
    (Stages(False, LRN(), MaxPool(2), "pool_lrn"), "pool 2/2, lrn 5"),
])  # fmt: skip
def test_names(stages, name):
    assert stages.name == name


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("lrn", [None, LRN(3, 0.5, 0.25, 2.0, 4)])
@pytest.mark.parametrize("pool", [None, MaxPool((2, 3), (4, 5), (1, 0), (7, 8), True)])
@pytest.mark.parametrize("order", ["lrn_pool", "pool_lrn"])
def test_stages_come_back_from_what_a_schema_carries(relu, lrn, pool, order):
    stages = Stages(relu, lrn, pool, order)
    assert Stages.unflat(*stages.flat()) == stages
    assert stages.empty == (not relu and not lrn and not pool)
    assert stages.lrn_first == (lrn is not None and (pool is None or order == "lrn_pool"))
    assert stages.output_shape((2, 8, 9, 30)) == (2, 8, *(pool.output_size(9, 30) if pool else (9, 30)))


@pytest.mark.parametrize(("shape", "strides", "expected"), [
    ((2, 3, 4, 5), (60, 1, 15, 3), torch.channels_last),
    ((2, 3, 4, 1), (12, 1, 3, 3), torch.channels_last),
    ((2, 3, 1, 5), (15, 1, 15, 3), torch.channels_last),
    ((2, 2, 4, 5), (40, 1, 10, 2), torch.channels_last),
    ((2, 2, 2, 1), (4, 1, 2, 2), torch.channels_last),
    ((2, 2, 1, 2), (4, 1, 4, 2), torch.channels_last),
    ((2, 3, 4, 5), (60, 20, 5, 1), torch.contiguous_format),
    ((2, 3, 4, 5), (60, 1, 3, 12), torch.contiguous_format),  # columns outermost
    ((2, 3, 4, 5), (60, 1, 5, 1), torch.contiguous_format),  # channels that overlap
    ((2, 3, 4, 5), (120, 2, 30, 6), torch.contiguous_format),  # every other channel
    ((2, 1, 4, 5), (20, 1, 5, 1), torch.contiguous_format),  # both fit
    ((2, 3, 1, 1), (3, 1, 3, 3), torch.contiguous_format),
])  # fmt: skip
def test_the_format_of_an_output(shape, strides, expected):
    assert memory_format(torch.zeros(300).as_strided(shape, strides)) == expected


@pytest.mark.parametrize(("x", "bias", "stages", "message"), [
    (torch.ones(1, 2, 3), None, Stages(), r"input must be \(N, C, H, W\), but got shape \(1, 2, 3\)"),
    (torch.ones(1, 2, 3, 3).int(), None, Stages(), r"input must be one of .*, but got torch.int32"),
    (torch.ones(1, 2, 3, 3), None, Stages(False), "no bias and no stages"),
    (torch.ones(1, 2, 3, 3), torch.ones(2, 1), Stages(), r"with 2 elements, but got bias of size \[2, 1\]"),
    (torch.ones(1, 2, 3, 3), torch.ones(3), Stages(), r"with 2 elements, but got bias of size \[3\]"),
    (torch.ones(1, 2, 3, 3), torch.ones(2).half(), Stages(), "same type and device"),
    (torch.ones(1, 2, 3, 3), torch.ones(2, device="meta"), Stages(), "same type and device"),
    (torch.ones(1, 4, 3, 3), None, Stages(lrn=LRN(groups=3)), "divisible by LRN groups=3"),
])  # fmt: skip
def test_what_no_backend_may_see_is_named(x, bias, stages, message):
    with pytest.raises(RuntimeError, match=message):
        check(x, bias, stages)


def test_what_every_backend_may_see():
    x = torch.ones(1, 4, 3, 3)
    check(x, None, Stages())
    check(x, torch.ones(4), Stages(False))
    check(x, torch.ones(4), Stages(lrn=LRN(groups=2)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_the_dtypes_of_kernels(dtype):
    check(torch.ones(1, 2, 3, 3, dtype=dtype), torch.ones(2, dtype=dtype), Stages())


BAD = [
    (lambda: LRN("5"), TypeError, "LRN: size must be an int, but got '5'"),
    (lambda: LRN(groups=True), TypeError, "LRN: groups must be an int, but got True"),
    (lambda: LRN(0), RuntimeError, "LRN: size must be at least 1, but got 0"),
    *((lambda name=name: LRN(**{name: "1"}), TypeError, f"LRN: {name} must be a number, but got '1'")
      for name in ("alpha", "beta", "k")),
    (lambda: MaxPool("3"), TypeError, "kernel_size must be an int or a pair of ints, but got '3'"),
    (lambda: MaxPool(3, (1, 1, 1)), RuntimeError, r"stride must be a single int .* got \(1, 1, 1\)"),
    (lambda: MaxPool(ceil_mode=1), TypeError, "max_pool2d: ceil_mode must be a bool, but got 1"),
    (lambda: Stages(lrn=5), TypeError, "lrn must be a fastcnn.LRN or None, but got 5"),
    (lambda: Stages(pool=3), TypeError, "pool must be a fastcnn.MaxPool or None, but got 3"),
    (lambda: Stages(order="pool"), ValueError, "order must be one of .*, but got 'pool'"),
]  # fmt: skip


@pytest.mark.parametrize(("make", "error", "message"), BAD)
def test_what_is_wrong_is_named(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_a_window_of_three_is_usual():
    assert MaxPool() == MaxPool(3, None, 0, 1, False)


def test_what_was_made_of_numbers_is_kept():
    for make, numbers in ((lrn_alone, (3, 0.1, 0.5, 2.0)), (pool_alone, ((2, 3), None, 0, 1, False))):
        assert make(*numbers) is make(*numbers)
    size = torch.tensor(2)
    assert pool_alone((size, 3), None, 0, 1, False) is not pool_alone((size, 3), None, 0, 1, False)


def test_the_channels_and_places_of_a_window():
    assert [(LRN(size).before, LRN(size).after) for size in (1, 2, 3, 4, 5)] == [
        (0, 0),
        (1, 0),
        (1, 1),
        (2, 1),
        (2, 2),
    ]
    assert MaxPool((15, 17), 16).argmax_dtype == MaxPool(3, 16).argmax_dtype == torch.uint8
    assert MaxPool(16, 1).argmax_dtype == MaxPool((1, 257), 1).argmax_dtype == torch.int32
    assert torch.tensor(NO_PLACE).to(torch.uint8) == 255  # a place in no window of at most 255


@pytest.mark.parametrize(("stages", "has_bias", "name"), [
    (Stages(False), True, None),
    (Stages(), True, "output"),
    (Stages(pool=MaxPool()), True, None),
    (Stages(lrn=LRN()), False, "r"),
    (Stages(False, LRN()), False, "input"),
    (Stages(False, LRN()), True, "r"),
    (Stages(False, LRN(), MaxPool(), "lrn_pool"), False, "input"),
    (Stages(False, LRN(), MaxPool(), "pool_lrn"), False, "r"),
])  # fmt: skip
def test_what_backward_needs_besides_the_argmax(stages, has_bias, name):
    assert stages.saved_name(has_bias) == name
    assert stages.pool_first == (stages.order == "pool_lrn" or not stages.lrn)


def test_a_block_makes_r_as_if_it_had_a_bias():
    alone = Stages(relu=False, lrn=LRN())
    assert alone.makes_r() and alone.makes_r(has_bias=True) and not alone.makes_r(has_bias=False)
