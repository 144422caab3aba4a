"""The walk evaluates any function as JAX does, and visits every equation once."""

import collections

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jmpq.network.walk import bind, body, equations, is_call, walk

NEVER = lambda eqn, path: False  # noqa: E731


@jax.custom_jvp
def steep(x):
    """A sine whose derivative is said to be seven."""
    return jnp.sin(x)


steep.defjvp(lambda primals, tangents: (steep(*primals), 7.0 * tangents[0]))


@jax.custom_vjp
def straight(x):
    """Rounding whose derivative is said to be one."""
    return jnp.round(x)


straight.defvjp(lambda x: (straight(x), None), lambda _, g: (g,))


@jax.jit
def inner(x, y):
    return jnp.sin(x) * y + 3.0


def nested(x, y):
    return jax.jit(lambda x: inner(x, y) + inner(y, x))(x)


def scanned(x, y):
    return jax.lax.scan(lambda c, row: (jnp.cos(c) @ row, c.sum()), x, jnp.stack([y, y]))


def looped(x, y):
    return jax.lax.while_loop(lambda z: jnp.sum(z) < 9.0, lambda z: 2.0 * z + y**2, x)


def branched(x, y):
    return jax.lax.cond(x.sum() > 0, lambda x: x @ y, lambda x: x - y, x)


FUNCTIONS = {
    "plain": lambda x, y: jnp.tanh(x @ y) + 2.0,
    "jit": nested,
    "custom jvp": lambda x, y: steep(x) + y,
    "custom vjp": lambda x, y: straight(3.0 * x) * y,
    "remat": lambda x, y: jax.checkpoint(lambda x: jnp.sin(jnp.sin(x) @ y))(x),
    "scan": scanned,
    "while": looped,
    "cond": branched,
    "constants": lambda x, y: (x * jnp.arange(9.0).reshape(3, 3), y, 1.0),
    "all": lambda x, y: scanned(inner(x, looped(steep(x) ** 2, y)), branched(y, x)),
}


def arguments():
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.normal(size=(3, 3))) for _ in range(2)]


def traced(function):
    return jax.make_jaxpr(function)(*arguments())


@pytest.mark.parametrize("enter", [is_call, NEVER])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_binding_every_equation_is_calling_the_function(name, enter):
    function, args = FUNCTIONS[name], arguments()
    closed = traced(function)
    got = walk(closed.jaxpr, closed.consts, args, bind, enter=enter)
    for one, other in zip(got, jax.tree.leaves(function(*args)), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-14)


@pytest.mark.parametrize("name", ["plain", "jit", "remat"])
def test_the_walk_is_a_function_like_any_other_to_jax(name):
    function, args = FUNCTIONS[name], arguments()
    closed = traced(function)
    walked = lambda *args: walk(closed.jaxpr, closed.consts, args, bind)[0].sum()  # noqa: E731
    got = jax.jit(jax.grad(walked, (0, 1)))(*args)
    want = jax.grad(lambda *args: function(*args).sum(), (0, 1))(*args)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), got, want)


@pytest.mark.parametrize(
    ("function", "claimed", "own"),
    [
        (steep, lambda x: 7.0 + 0 * x, jnp.cos),
        (straight, lambda x: 1.0 + 0 * x, lambda x: 0 * x),
    ],
)
def test_custom_derivatives_stay_where_the_walk_does_not_enter(function, claimed, own):
    x = jnp.linspace(-1.0, 2.0, 5)
    closed = jax.make_jaxpr(function)(x)
    for enter, want in ((NEVER, claimed), (is_call, own)):
        walked = lambda x: walk(closed.jaxpr, closed.consts, [x], bind, enter=enter)[0].sum()  # noqa: B023, E731
        np.testing.assert_allclose(jax.grad(walked)(x), want(x), rtol=1e-14)


def visited(closed, **options):
    """Every visit: path and equation."""
    visits = []

    def rule(eqn, ins, path):
        visits.append((path, eqn))
        return bind(eqn, ins)

    walk(closed.jaxpr, closed.consts, arguments(), rule, **options)
    return visits


def at(jaxpr, path):
    """The equation at a path, by going there."""
    eqn = jaxpr.eqns[path[0]]
    return at(body(eqn)[0], path[1:]) if len(path) > 1 else eqn


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_equation_is_visited_once_in_order_at_a_path_that_leads_to_it(name):
    closed = traced(FUNCTIONS[name])
    visits = visited(closed)
    paths = [path for path, _ in visits]
    assert paths == sorted(set(paths))
    assert all(at(closed.jaxpr, path) is eqn for path, eqn in visits)

    def leaves(jaxpr):
        """Equations that call nothing, counted by recursion."""
        return sum(leaves(body(e)[0]) if is_call(e) else 1 for e in jaxpr.eqns)

    assert len(visits) == leaves(closed.jaxpr)
    assert [path for path, _ in visited(traced(FUNCTIONS[name]))] == paths  # traced again


def test_primitives_of_a_body_that_is_called_twice_are_counted_twice():
    names = collections.Counter(eqn.primitive.name for _, eqn in visited(traced(nested)))
    assert names == {"sin": 2, "mul": 2, "add": 3}
    whole = collections.Counter(
        eqn.primitive.name for _, eqn in visited(traced(nested), enter=NEVER)
    )
    assert whole == {"jit": 1}


def test_a_path_goes_on_from_where_the_walk_starts():
    closed = traced(FUNCTIONS["plain"])
    assert [path for path, _ in visited(closed, at=(4, 2))] == [
        (4, 2, index) for index in range(len(closed.jaxpr.eqns))
    ]


def test_any_value_may_flow():
    """Which arguments an output depends on, and how often each value is read."""
    table = jnp.arange(9.0).reshape(3, 3)
    reads = []

    def function(x, y):
        z = x + table
        return z * z, jax.jit(lambda y: y * 2.0)(y), x - y

    def read(value, uses):
        reads.append((sorted(value), uses))
        return value

    closed = traced(function)
    got = walk(
        closed.jaxpr,
        closed.consts,
        [{"x"}, {"y"}],
        lambda eqn, ins, path: [set().union(*ins)] * len(eqn.outvars),
        constant=lambda array: {"a constant of shape", str(np.shape(array))},
        read=read,
    )
    constant = {"a constant of shape"}
    assert got == [
        {"x", "(3, 3)"} | constant,
        {"y", "()"} | constant,
        {"x", "y"},
    ]
    z = sorted({"x", "(3, 3)"} | constant)
    assert reads.count((z, 2)) == 2  # z * z
    assert reads.count((["x"], 2)) == 2  # x + table and x - y
    assert reads.count((["y"], 1)) == 1  # in the body of jit, which reads it once


def test_all_equations_are_listed_those_of_loops_and_branches_too():
    closed = traced(lambda x, y: scanned(x, y)[0] + branched(x, y) + nested(x, y))
    names = collections.Counter(eqn.primitive.name for eqn in equations(closed.jaxpr))
    assert names["dot_general"] == 2  # of the scan, of one branch
    assert (names["scan"], names["cond"], names["cos"], names["sin"]) == (1, 1, 1, 2)


def test_an_equation_without_a_body_has_none():
    (eqn,) = jax.make_jaxpr(jnp.sin)(1.0).jaxpr.eqns
    with pytest.raises(NotImplementedError, match="`sin` keeps its body where JAX never did"):
        body(eqn)
