"""Meshes, their errors, and what processes are told before they join."""

import dataclasses

import jax
import numpy as np
import pytest

from jmpq.devices import (
    device_mesh,
    join_processes,
    mesh_for,
    replicate,
    same_everywhere,
    split_cpu,
    spread,
    to_host,
)


@dataclasses.dataclass(frozen=True)
class Device:
    """Stands for a device of one of several processes."""

    id: int
    process_index: int
    device_kind: str = "cpu"


def devices(*counts):
    """So many devices of each process."""
    return [Device(10 * p + i, p) for p, count in enumerate(counts) for i in range(count)]


def test_a_mesh_has_all_devices_or_the_first_of_every_process():
    assert device_mesh(devices=devices(2, 3)).devices.tolist() == devices(2, 3)
    chosen = device_mesh(2, devices(2, 3)).devices
    assert [device.id for device in chosen] == [0, 1, 10, 11]


@pytest.mark.parametrize(
    ("count", "found", "message"),
    [
        (0, (2,), r"0 devices asked for; there are 2 \(cpu\). Ask for 1 to 2"),
        (3, (2,), r"3 devices asked for; there are 2 \(cpu\). Ask for 1 to 2"),
        (3, (4, 2), r"3 devices asked for; there are 2 in every process \(cpu\)"),
    ],
)
def test_devices_that_are_not_there_are_refused(count, found, message):
    with pytest.raises(ValueError, match=message):
        device_mesh(count, devices(*found))


def test_no_device_is_refused_before_jax_is_told():
    with pytest.raises(ValueError, match="0 devices asked for: give at least 1"):
        split_cpu(0)


def test_a_cpu_in_use_is_not_split():
    before = jax.devices()
    split_cpu(len(before) + 1)
    assert jax.devices() == before


@pytest.mark.parametrize(
    ("args", "environment", "message"),
    [
        (("here:1", 2), {}, "coordinator=here:1, 2 processes, index None: give all three"),
        ((None, None, 0), {}, "coordinator=None, None processes, index 0: give all three"),
        ((), {"JAX_NUM_PROCESSES": "2"}, "coordinator=None, 2 processes, index None"),
        ((), {"JAX_PROCESS_ID": "first"}, "JAX_PROCESS_ID='first' in the environment: expect"),
        (("here", 2, 0), {}, "coordinator='here': expected host:port of process 0"),
        (("here:1", 2, 2), {}, "Process 2 of 2: expected an index from 0 to count - 1"),
        (("here:1", 2, -1), {}, "Process -1 of 2: expected an index"),
        (
            ("here:1", 2),
            {"JAX_COORDINATOR_ADDRESS": "there", "JAX_PROCESS_ID": "5"},
            "Process 5 of 2",  # what is given goes before the environment
        ),
    ],
)
def test_processes_that_cannot_find_each_other_are_refused(
    monkeypatch, args, environment, message
):
    for name in ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=message):
        join_processes(*args)


def test_processes_join_before_jax_is_used():
    jax.devices()
    with pytest.raises(RuntimeError, match="before any JAX"):
        join_processes("localhost:1", 1, 0)


@pytest.mark.parametrize(("examples", "shards"), [(16, 8), (12, 4), (11, 1), (2, 2)])
def test_a_batch_is_cut_into_equal_parts_and_its_devices_copy_what_is_left(examples, shards):
    grid = mesh_for(device_mesh(devices=devices(8)), examples)
    assert dict(grid.shape) == {"examples": shards, "copies": 8 // shards}
    assert grid.devices.ravel().tolist() == devices(8)


def test_shapes_are_told_where_arrays_would_be():
    mesh = mesh_for(device_mesh(1), 4)
    batch = np.zeros((4, 3), np.float32), np.zeros(4, np.int32)
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), batch)
    for put in (spread, replicate):
        for told, array in zip(put(mesh, shapes), put(mesh, batch), strict=True):
            assert isinstance(told, jax.ShapeDtypeStruct)
            assert (told.shape, told.dtype) == (array.shape, array.dtype)
            assert told.sharding == array.sharding


def test_one_process_has_the_whole_already():
    np.testing.assert_array_equal(to_host(jax.numpy.arange(3)), [0, 1, 2])
    assert same_everywhere(b"as it is") == b"as it is"
    assert same_everywhere(None) is None
