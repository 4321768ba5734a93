"""alexnet("2014", weights=...): from a server on this machine or torch.hub's cache, and what can go wrong."""

import hashlib
import http.server
import io
import os
import re
import resource
import socket
import struct
import sys
import threading
import types
from http.client import IncompleteRead
from pathlib import Path
from urllib.error import HTTPError, URLError

import published
import pytest
import torch

from fastcnn.models import _hub, alexnet, imagenet, lenet5

BY_HAND = "or download the file by hand and use fastcnn.models.load_weights"


class Answer(http.server.BaseHTTPRequestHandler):
    """Answers as ``server.how`` says, with ``server.file`` or a part of it; counts requests."""

    def do_GET(self):
        self.server.requests += 1
        getattr(self, self.server.how)(self.server.file)

    def whole(self, file):
        self.send_response(200)
        self.send_header("Content-Length", str(len(file)))
        self.end_headers()
        self.wfile.write(file)

    def another(self, file):
        self.whole(file[::-1])

    def cut(self, file):
        self.send_response(200)
        self.send_header("Content-Length", str(len(file)))
        self.end_headers()
        self.wfile.write(file[: len(file) // 2])

    def reset(self, file):
        self.cut(file)
        self.wfile.flush()
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()

    def missing(self, file):
        self.send_error(404)

    def broken(self, file):
        self.send_error(500)

    def silent(self, file):
        pass

    def foreign(self, file):
        self.wfile.write(b"220 ftp.example.org\r\n")

    def log_message(self, *args):
        pass


def saved(state):
    file = io.BytesIO()
    torch.save(state, file)
    return file.getvalue()


@pytest.fixture(scope="module")
def alexnets():
    """A state dict of torchvision's shapes, each tensor one value that is stored once."""
    with torch.device("meta"):
        shapes = {name: p.shape for name, p in published.torchvisions_alexnet().named_parameters()}
    return {name: torch.tensor(i + 0.5).expand(shape) for i, (name, shape) in enumerate(shapes.items())}


@pytest.fixture(scope="module")
def trained():
    """LeNet's, for tests of the file's way: imagenet.load takes any network that the file fits."""
    return lenet5().state_dict()


@pytest.fixture(scope="module")
def file(trained):
    return saved(trained)


@pytest.fixture
def model():
    """All its parameters are 0."""
    model = lenet5().requires_grad_(False)
    for p in model.parameters():
        p.zero_()
    return model


@pytest.fixture
def server(file, tmp_path, monkeypatch):
    """A server that has the file; torch.hub's cache is in ``tmp_path``."""
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        server.how, server.file, server.requests = "whole", file, 0
        serve(server, file, monkeypatch)
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def serve(server, file, monkeypatch):
    """Make ``file`` what is served, under a URL that ends with its hash."""
    name = f"alexnet-owt-{hashlib.sha256(file).hexdigest()[:8]}.pth"
    server.file = file
    monkeypatch.setattr(imagenet, "URL", f"http://127.0.0.1:{server.server_port}/models/{name}")


def place():
    """The file's in the cache."""
    return Path(os.environ["TORCH_HOME"], "hub", "checkpoints", imagenet.URL.rpartition("/")[2])


def cached(data):
    place().parent.mkdir(parents=True)
    place().write_bytes(data)


def assert_holds(model, trained):
    state = model.state_dict()
    assert list(state) == list(trained)
    assert all(torch.equal(state[name], trained[name]) for name in trained)


def refused(model, error, *words):
    """Nothing is loaded, nothing half-written is in the cache, and all of ``words`` are in one message."""
    before = list(place().parent.glob("*")) if place().parent.is_dir() else []
    with pytest.raises(error) as caught:
        imagenet.load(model, progress=False)
    message = str(caught.value)
    for word in (*words, BY_HAND):
        assert message.count(word) == 1, message
    assert "\n" not in message
    assert not any(p.any() for p in model.parameters())
    assert (list(place().parent.glob("*")) if place().parent.is_dir() else []) == before
    return caught.value


def then_succeeds(model, trained):
    imagenet.load(model, progress=False)
    assert_holds(model, trained)
    assert [path.name for path in place().parent.iterdir()] == [place().name]


@pytest.mark.parametrize(("weights", "fused"), [("IMAGENET1K_V1", True), ("DEFAULT", False)])
def test_alexnets_weights_are_downloaded_once(fused, weights, server, alexnets, monkeypatch, capsys):
    serve(server, saved(alexnets), monkeypatch)
    model = alexnet("2014", weights=weights, fused=fused, dropout=0.1)
    assert_holds(model, alexnets)
    assert model.training and model.fused is fused and model.classifier[0].p == 0.1
    out, err = capsys.readouterr()
    assert not out
    assert f"Downloading {imagenet.URL} to {place()}\n" in err
    assert place().read_bytes() == server.file
    imagenet.load(model)
    assert server.requests == 1
    assert capsys.readouterr() == ("", "")


def test_torchvisions_url_and_place(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    assert imagenet.URL == "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth"
    assert place() == tmp_path / "hub" / "checkpoints" / "alexnet-owt-7be5be79.pth"


def test_a_cached_file_is_used_as_it_is(server, file, model, trained):
    cached(file)
    place().parent.chmod(0o500)
    written = place().stat().st_mtime_ns
    then_succeeds(model, trained)
    assert server.requests == 0
    assert place().stat().st_mtime_ns == written


def test_no_file_and_no_request_without_weights(server):
    with torch.device("meta"):
        alexnet("2014")
    assert server.requests == 0
    assert not place().parent.exists()


HTTP_ERRORS = {"missing": (404, "Not Found"), "broken": (500, "Internal Server Error")}
CUT = {  # what torch raises, and its words
    "cut": (RuntimeError, "what came is cut off or another file, invalid hash value"),
    "another": (RuntimeError, "what came is cut off or another file, invalid hash value"),
    "reset": (ConnectionResetError, "Connection reset by peer"),
    "silent": (ConnectionResetError, "Remote end closed connection without response"),
    "foreign": (URLError, "220 ftp.example.org"),
}


@pytest.mark.parametrize("how", HTTP_ERRORS)
def test_an_http_error(how, server, model, trained):
    server.how, (code, words) = how, HTTP_ERRORS[how]
    error = refused(model, HTTPError, imagenet.URL, str(place()), words, "Try again")
    assert error.code == code
    error.close()
    server.how = "whole"
    then_succeeds(model, trained)


@pytest.mark.parametrize("how", CUT)
def test_a_broken_download(how, server, model, trained):
    server.how, (error, words) = how, CUT[how]
    refused(model, error, imagenet.URL, str(place()), words, "Try again")
    server.how = "whole"
    then_succeeds(model, trained)


def test_a_refused_connection(server, model, trained, monkeypatch):
    url = imagenet.URL
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # nobody listens
        port = unused.getsockname()[1]
        monkeypatch.setattr(imagenet, "URL", url.replace(str(server.server_port), str(port)))
        refused(model, URLError, imagenet.URL, str(place()), "Connection refused", "Try again")
    monkeypatch.setattr(imagenet, "URL", url)
    then_succeeds(model, trained)


def test_an_unknown_host(server, model, monkeypatch):
    def unknown(*args, **kwargs):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    refused(model, URLError, imagenet.URL, str(place()), "Name or service not known", "Try again")


def test_an_error_that_is_no_oserror_becomes_one():
    error = _hub._explained(IncompleteRead(b"1234"), "http://h/w-12.pth", Path("w"))
    assert type(error) is URLError
    assert "IncompleteRead(4 bytes read)" in str(error)


@pytest.mark.parametrize("part", [0, 1, 2])
def test_a_damaged_file_in_the_cache(part, server, file, model, trained):
    cached(file[: len(file) * part // 2][: len(file) - 1])
    refused(model, RuntimeError, f"{place()} is damaged", "Delete it and try again")
    place().unlink()
    then_succeeds(model, trained)


def test_one_changed_byte_in_the_cache(server, file, model):
    cached(file[:-2000] + bytes([file[-2000] ^ 1]) + file[-1999:])
    refused(model, RuntimeError, f"{place()} is damaged", "Delete it and try again")


def test_no_code_in_the_file_is_run(server, model, tmp_path, monkeypatch):
    code = published.Code(tmp_path / "w.pth")
    serve(server, saved({"features.0.weight": code}), monkeypatch)
    with pytest.raises(RuntimeError, match=rf"{place()} is damaged or no checkpoint of tensors.*mkdir"):
        imagenet.load(model, progress=False)
    assert not code.folder.exists()


def test_a_file_of_another_network_does_not_fit(server, model, monkeypatch):
    serve(server, saved({"features.c1.weight": torch.zeros(1)}), monkeypatch)
    with pytest.raises(RuntimeError, match=rf"{place()} does not fit: features\.c1\.bias is missing"):
        imagenet.load(model, progress=False)
    assert not any(p.any() for p in model.parameters())


@pytest.mark.parametrize("in_the_way", ["hub", "hub/checkpoints"])
def test_a_file_in_place_of_the_cache(in_the_way, server, model, trained, tmp_path):
    (tmp_path / in_the_way).parent.mkdir(exist_ok=True)
    (tmp_path / in_the_way).touch()
    error = refused(model, OSError, imagenet.URL, "Set TORCH_HOME to another folder")
    assert isinstance(error, (FileExistsError, NotADirectoryError))
    (tmp_path / in_the_way).unlink()
    then_succeeds(model, trained)


@pytest.mark.parametrize("folder", ["", "hub/checkpoints"])
@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_cache_that_cannot_be_written(folder, server, model, trained, tmp_path):
    (tmp_path / folder).mkdir(parents=True, exist_ok=True)
    (tmp_path / folder).chmod(0o500)
    refused(model, PermissionError, imagenet.URL, "Permission denied", "Set TORCH_HOME to another")
    (tmp_path / folder).chmod(0o700)
    then_succeeds(model, trained)


def test_a_full_disk(server, model, trained):
    """A limit on the size of files, which fails in the same place."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        refused(model, OSError, imagenet.URL, str(place()), "File too large", "Set TORCH_HOME to another")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    then_succeeds(model, trained)


MISFITS = {
    "variant": ("2012", "variant='2014'"),
    "num_classes": (10, "num_classes=1000"),
    "norm": ("batch", "norm='published' or None"),
    "overlap": (False, "overlap=True"),
    "adaptive": (False, "adaptive=None or True"),
    "in_channels": (1, "in_channels=3"),
    "towers": (2, "towers=None or 1"),
}


@pytest.mark.parametrize("name", MISFITS)
def test_another_network_is_refused(name, server):
    value, needed = MISFITS[name]
    wanted = f"alexnet: weights='DEFAULT' need {needed}, but got {name}={value!r}"
    with pytest.raises(ValueError, match=f"^{re.escape(wanted)}$"):
        alexnet(**{"variant": "2014", name: value}, weights="DEFAULT")
    assert server.requests == 0


def test_arguments_that_change_nothing_are_taken(server, alexnets, monkeypatch):
    serve(server, saved(alexnets), monkeypatch)
    assert_holds(alexnet("2014", 1000, towers=1, norm=None, adaptive=True, weights="DEFAULT"), alexnets)


@pytest.mark.parametrize("weights", ["IMAGENET1K_V2", "default", "", True, 3, ["DEFAULT"]])
def test_unknown_weights_are_refused(weights):
    wanted = f"weights must be one of ('IMAGENET1K_V1', 'DEFAULT') or None, but got {weights!r}"
    with pytest.raises(ValueError, match=re.escape(wanted)):
        alexnet("2014", weights=weights)


def test_every_argument_is_checked():
    free = {"dropout", "fused", "weights"}
    pinned = set(alexnet.__kwdefaults__) | {"variant", "num_classes"}
    assert set(imagenet.FITS) == set(MISFITS) == pinned - free


def test_classes_are_torchvisions(monkeypatch):
    names = [f"class {i}" for i in range(1000)]
    entry = types.SimpleNamespace(meta={"categories": names})
    theirs = types.ModuleType("torchvision.models")
    theirs.AlexNet_Weights = types.SimpleNamespace(IMAGENET1K_V1=entry)
    monkeypatch.setitem(sys.modules, "torchvision", types.ModuleType("torchvision"))
    monkeypatch.setitem(sys.modules, "torchvision.models", theirs)
    assert imagenet.classes() == tuple(names)


def test_classes_are_numbers_without_torchvision(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    assert imagenet.classes() == tuple(str(i) for i in range(1000))


def test_classes_are_numbers_where_torchvision_is_for_another_torch(monkeypatch, tmp_path):
    monkeypatch.delitem(sys.modules, "torchvision", raising=False)
    (tmp_path / "torchvision.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    monkeypatch.syspath_prepend(tmp_path)
    assert imagenet.classes()[-1] == "999"
