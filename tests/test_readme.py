"""What README and docs show is true: snippets run, commands parse, links resolve."""

import ast
import functools
import json
import re
import runpy
import shlex
import shutil
import subprocess
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tyro
from safetensors.numpy import save_file

import jmpq
from experiments.figures import draw
from jmpq.cli import commands, main
from tests import pages
from tests.report import synthetic_run

# Run by tests/run/test_run.py, beside the commands that do the same.
ELSEWHERE = ("docs/guides/steps.md",)


class CNN(nn.Module):
    """Two convolutions with pooling, two dense layers: the network of Flax's MNIST example,
    with fewer features.
    """

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(features=8, kernel_size=(3, 3))(x)
        x = nn.relu(x)
        x = nn.avg_pool(x, window_shape=(2, 2), strides=(2, 2))
        x = nn.Conv(features=16, kernel_size=(3, 3))(x)
        x = nn.relu(x)
        x = nn.avg_pool(x, window_shape=(2, 2), strides=(2, 2))
        x = x.reshape((x.shape[0], -1))
        x = nn.Dense(features=32)(x)
        x = nn.relu(x)
        return nn.Dense(features=10)(x)


def trained(module, images, labels, steps=60):
    """Parameters after some steps of Adam on all images."""
    params = module.init(jax.random.key(0), images[:1])["params"]
    optimizer = optax.adam(0.01)

    def loss(params):
        logits = module.apply({"params": params}, images)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    def step(carry, _):
        params, state = carry
        updates, state = optimizer.update(jax.grad(loss)(params), state)
        return (optax.apply_updates(params, updates), state), None

    start = (params, optimizer.init(params))
    return jax.jit(lambda carry: jax.lax.scan(step, carry, None, steps)[0][0])(start)


@pytest.fixture(scope="module", autouse=True)
def flax_defaults():
    with (
        jax.enable_x64(False),
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
    ):
        yield


@pytest.fixture(scope="module")
def readme():
    """The names that the ten lines of the README leave, on a network that is not jmpq's."""
    data = jmpq.load_dataset("digits")
    images, labels = (jnp.asarray(x[:512]) for x in (data.train.inputs, data.train.labels))
    images = images / 16.0
    module = CNN()
    names = {
        "module": module,
        "variables": {"params": trained(module, images, labels)},
        "images": images[:128],
        "labels": labels[:128],
        "test_images": data.heldout.inputs[:256] / np.float32(16.0),
        "test_labels": data.heldout.labels[:256],
    }
    (code,) = pages.snippets(pages.README)
    assert len([line for line in code.splitlines() if line]) <= 10
    exec(code, names)
    return names


def test_a_network_nobody_here_wrote_goes_through_in_the_ten_lines_of_the_readme(readme):
    # What came out, by hand: size, and the module's own logits with rounded kernels.
    solution, outcome = readme["solution"], readme["outcome"]
    module, params = readme["module"], readme["variables"]["params"]
    test_images, test_labels = readme["test_images"], readme["test_labels"]
    bits = {layer: c.w_bits for layer, c in solution.allocation.items()}
    assert list(bits) == ["Conv_0", "Conv_1", "Dense_0", "Dense_1"]
    sizes = {name: params[name]["kernel"].size for name in bits}
    channels = {name: params[name]["bias"].size for name in bits}
    size = sum(
        -(-sizes[n] * b // 8) + 4 * channels[n] + 4 * channels[n] for n, b in bits.items()
    )
    limit = sum(-(-sizes[n] * 4 // 8) + 8 * channels[n] for n in bits)
    assert solution.costs["size_bytes"] == size <= limit
    assert solution.status == "optimal"
    assert len(set(bits.values())) > 1
    rounded = {}
    for i, (name, b) in enumerate(bits.items()):
        scales = readme["quantizers"].weights
        scale = np.asarray(scales.scale[i][scales.bits.index(b)])  # per output channel, last
        kernel = np.asarray(params[name]["kernel"])
        most = 2 ** (b - 1) - 1
        rounded[name] = {
            **params[name],
            "kernel": scale * np.clip(np.round(kernel / scale), -most, most),
        }
    z, q = (
        np.asarray(jax.nn.log_softmax(module.apply({"params": p}, test_images)))
        for p in (params, rounded)
    )
    kl = (np.exp(z) * (z - q)).sum(axis=1).mean()
    assert 1e-4 < kl < 1
    np.testing.assert_allclose(outcome.kl, kl, rtol=1e-3)
    assert outcome.top1 == (q.argmax(1) == test_labels).mean()
    assert outcome.top1 > 0.8


def published_bert(folder):
    """A folder as an encoder is published: a configuration and tensors, here random ones."""
    config = {
        "vocab_size": 30,
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 12,
        "max_position_embeddings": 10,
        "type_vocab_size": 2,
    }
    random = np.random.default_rng(0)
    hidden, wide = config["hidden_size"], config["intermediate_size"]
    shapes = {
        "embeddings.word_embeddings.weight": (config["vocab_size"], hidden),
        "embeddings.position_embeddings.weight": (config["max_position_embeddings"], hidden),
        "embeddings.token_type_embeddings.weight": (config["type_vocab_size"], hidden),
    }
    layer = "encoder.layer.0"
    dense = {
        f"{layer}.attention.self.query": (hidden, hidden),
        f"{layer}.attention.self.key": (hidden, hidden),
        f"{layer}.attention.self.value": (hidden, hidden),
        f"{layer}.attention.output.dense": (hidden, hidden),
        f"{layer}.intermediate.dense": (wide, hidden),
        f"{layer}.output.dense": (hidden, wide),
        "pooler.dense": (hidden, hidden),
    }
    norms = ("embeddings", f"{layer}.attention.output", f"{layer}.output")
    shapes |= {f"{name}.weight": shape for name, shape in dense.items()}
    shapes |= {f"{name}.bias": shape[:1] for name, shape in dense.items()}
    shapes |= {f"{n}.LayerNorm.{end}": (hidden,) for n in norms for end in ("weight", "bias")}
    tensors = {n: random.standard_normal(s).astype(np.float32) for n, s in shapes.items()}
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(
    "path",
    [path for path in pages.PAGES[1:] if pages.snippets(path)],
    ids=pages.name,
)
def test_every_snippet_of_a_page_runs_after_the_ten_lines(path, readme, tmp_path):
    if pages.name(path) in ELSEWHERE:
        return
    names = {**readme, "jnp": jnp, "np": np, "jax": jax}
    text = path.read_text()
    if "folder" in text:
        names["folder"] = published_bert(tmp_path / "bert")
    if "run_folder" in text:
        names["run_folder"] = tmp_path / "run"
        synthetic_run.write_run(names["run_folder"], synthetic_run.sensitivities())
    names["path"] = tmp_path / "exported"
    names["greedy_allocation"] = jmpq.Greedy()(readme["problem"]).allocation
    for code in pages.snippets(path):
        exec(compile(code, str(path), "exec"), names)


LINES = [
    pytest.param(line, id=f"{pages.name(path)}: {line}")
    for path in pages.PAGES
    for line in dict.fromkeys(pages.commands(path))
    if line.strip()
]


@pytest.mark.parametrize("line", LINES)
def test_every_command_of_a_page_is_understood(line, monkeypatch):
    words = shlex.split(line, comments=True)
    if words[0] == "srun":
        words = words[words.index("jmpq") :]
    program, *args = words
    if program == "jmpq":
        assert understood(args, monkeypatch) == [args[0]] or args[0].startswith("--tyro")
    elif program.endswith("python"):
        assert args[0] == "-m"
        module_understands(*args[1:], monkeypatch=monkeypatch)
    elif program == "make":
        makefile = (pages.ROOT / "Makefile").read_text()
        assert all(re.search(rf"^{name}:", makefile, re.MULTILINE) for name in args)
    else:
        assert program in ("pip", "git")


def understood(args, monkeypatch):
    """Steps that the command line would have called."""
    called = []

    def stands_for(step):
        return functools.wraps(step)(lambda *args, **kwargs: called.append(step.__name__))

    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "")
    for name in main.STEPS:
        monkeypatch.setattr(commands, name, stands_for(getattr(commands, name)))
    try:
        main.main([arg for arg in args if not arg.startswith("--tyro-write")])
    except SystemExit as end:  # after help, or --tyro
        assert not end.code or args[0].startswith("--tyro")  # noqa: PT017
    return called


def module_understands(module, *args, monkeypatch):
    """Parse the arguments as the module does, without running it."""
    parse = tyro.cli

    def only_parsed(target, **kwargs):
        if not isinstance(target, type):
            target = functools.wraps(target)(lambda *args, **kwargs: None)
        parse(target, **{**kwargs, "args": args})
        raise SystemExit(0)

    monkeypatch.setattr(tyro, "cli", only_parsed)
    monkeypatch.setattr(draw, "main", lambda: sys.exit(0))
    monkeypatch.delitem(sys.modules, module, raising=False)
    monkeypatch.setattr(sys, "argv", [module, *args])
    if module == "jmpq.data.imagenet_builder":
        return
    with pytest.raises(SystemExit) as ended:
        runpy.run_module(module, run_name="__main__")
    assert ended.value.code == 0


@pytest.mark.parametrize("path", pages.PAGES, ids=pages.name)
def test_every_link_of_a_page_resolves(path):
    for link in pages.links(path):
        if re.match(r"https?://", link):
            continue
        file, _, anchor = link.partition("#")
        target = path.parent / file if file else path
        assert target.exists(), link
        own = target.relative_to(pages.ROOT).parts
        assert not {*pages.MADE} & {*own}, f"{link} is there in the built site only"
        assert not anchor or anchor in pages.anchors(target), link


@pytest.mark.parametrize("path", pages.PAGES, ids=pages.name)
def test_no_sentence_of_a_page_is_longer_than_35_words(path):
    long = [s for s in pages.sentences(path.read_text()) if len(s.split()) > 35]
    assert not long


def test_sentences_are_found_in_prose_alone():
    page = (
        "# A head\n\nOne. Two `a. b` words\nmore!\n\n- item\n- other (a 1.5 b)\n\n| a | b |\n"
    )
    assert pages.sentences(page) == ["One.", "Two Code words more!", "item", "other (a 1.5 b)"]


def test_readme_is_short_and_its_table_has_six_rows():
    text = pages.README.read_text()
    assert len(text.splitlines()) <= 150
    assert sum(line.startswith("| ") for line in text.splitlines()) == 2 + 6


@pytest.mark.parametrize(
    "path",
    [
        pytest.param(path, marks=[pytest.mark.slow] * (path.stem == "fidelity_details"))
        for path in draw.pages()
    ],
    ids=pages.name,
)
def test_tables_of_a_page_are_drawn_from_the_committed_results(path):
    page = path.read_text()
    assert draw.filled(page, draw.tables()) == page


def test_every_table_has_a_page_and_every_mark_a_table():
    marks = [name for path in draw.pages() for name in draw.marked(path.read_text())]
    assert sorted(marks) == sorted(draw.tables())
    with pytest.raises(ValueError, match="No table is called nothing: correct the mark"):
        draw.filled("<!-- nothing -->\n<!-- /nothing -->\n", draw.tables())


def test_every_result_has_a_page():
    shown = "".join(path.read_text() for path in pages.DOCS)
    for result in (pages.ROOT / "experiments" / "results").glob("*.json"):
        assert result.stem in shown, f"{result.name} is named on no page of docs"


def test_every_figure_that_is_committed_is_shown():
    shown = "".join(path.read_text() for path in pages.PAGES)
    for figure in (pages.ROOT / "experiments" / "figures").glob("*.svg"):
        if not re.match(r"fidelity_resnet(32|44)", figure.name):  # as of ResNet-20
            assert figure.name in shown


def said():
    """The texts of all messages in the source, with … for what is filled in."""
    for path in (pages.ROOT / "jmpq").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                yield "".join(
                    str(part.value) if isinstance(part, ast.Constant) else "…"
                    for part in node.values
                )


def test_every_message_of_the_reference_is_one_that_is_said():
    page = (pages.ROOT / "docs/reference/errors.md").read_text()
    messages = re.findall(r"^\| `(.*…[^`]*)` \|", page, re.MULTILINE)
    assert len(messages) >= 10
    source = list(said())
    for message in messages:
        parts = [re.escape(part) for part in message.split("…")]
        assert any(re.search(".*".join(parts), text) for text in source), message


NO_NOUNS = "Of|Those|That|What|Its|Their|How|Where|Which|Who|Called|Decides|Gives|Asked|Not|As"


def attributes_without_a_noun(text):
    """Lines of attributes and arguments that begin with another word; errors aside."""
    return re.findall(rf"^\s+(?!\w*Error)\w+: (?:{NO_NOUNS})\b(?! =).*$", text, re.MULTILINE)


def test_the_line_of_an_attribute_begins_with_a_noun():
    found = []
    for folder in ("jmpq", "experiments"):
        for path in sorted((pages.ROOT / folder).rglob("*.py")):
            lines = attributes_without_a_noun(path.read_text())
            found += [f"{pages.name(path)}: {line.strip()}" for line in lines]
    assert not found


def test_attributes_without_a_noun_are_found():
    text = """
        momentum: Of sgd.
        cost: Its cost.
        seed: Seed of sgd.
        ValueError: As `run`.
        which: Which = "all",
    """
    assert [line.strip() for line in attributes_without_a_noun(text)] == [
        "momentum: Of sgd.",
        "cost: Its cost.",
    ]


def test_versions_agree():
    version = re.search(r'^version = "(.*)"', (pages.ROOT / "pyproject.toml").read_text(), re.M)
    assert version is not None
    for name in ("CITATION.cff", "docs/references.bib", "CHANGELOG.md"):
        assert version[1] in (pages.ROOT / name).read_text(), name


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_make_says_that_an_interpreter_cannot_be_run(tmp_path):
    old = tmp_path / "old"
    old.write_text('#!/bin/sh\ncase "$2" in pass) exit 0;; *) exit 1;; esac\n')
    old.chmod(0o755)
    for python, message in (
        (tmp_path / "none", "none cannot be run; choose an interpreter with PYTHON="),
        (old, "jmpq needs Python 3.11 or later; choose one with PYTHON="),
    ):
        command = ["make", "demo", f"PYTHON={python}", f"VENV={tmp_path / 'venv'}"]
        done = subprocess.run(command, cwd=pages.ROOT, capture_output=True, text=True)
        assert done.returncode
        assert message in done.stdout
