"""Reads a prepared copy without the library that wrote it, whose import takes longer than the images of a small set.

A copy is a folder of ArrayRecord files of tensorflow.Example messages, as tensorflow_datasets writes them. Nobody else
needs to be able to read more of these messages than the builders here write: one value for each name, bytes or an
integer that is not negative.
"""

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

VERSION = '2.0.0'  # of what is prepared of an image; the innermost folder of a copy
AT_ONCE = 256  # records whose bytes are in memory
_NUMBER, _BYTES = 0, 2  # wire types of Protocol Buffers


def each(path: Path, function: Callable[[dict[str, bytes | int]], Any], threads: int) -> list[Any]:
    """A function of every record of a copy, in order. Raises what the files or the function raise.

    path: the folder of a copy. ValueError: it is not whole.
    """
    found = []
    with ThreadPoolExecutor(threads) as pool:
        for messages in _messages(path):
            found += pool.map(lambda message: function(parse(message)), messages)
    return found


def _messages(path: Path) -> Iterator[list[bytes]]:
    from array_record.python.array_record_module import ArrayRecordReader

    lengths = _shard_lengths(path)
    shards = sorted(path.glob('*.array_record-*'))
    if len(shards) != len(lengths):
        raise ValueError(f'{len(shards)} files of records, expected {len(lengths)}')
    for shard, length in zip(shards, lengths, strict=True):
        reader = ArrayRecordReader(str(shard))
        try:
            if reader.num_records() != length:
                raise ValueError(f'{shard.name} has {reader.num_records()} records, expected {length}')
            for start in range(0, length, AT_ONCE):
                yield reader.read(start, min(start + AT_ONCE, length))
        finally:
            reader.close()


def _shard_lengths(path: Path) -> list[int]:
    """Records in each file of the one split. ValueError: the description is no such description."""
    description = json.loads((path / 'dataset_info.json').read_text())
    try:
        (split,) = description['splits']
        return [int(length) for length in split['shardLengths']]
    except (KeyError, TypeError) as error:
        raise ValueError('dataset_info.json has no lengths of one split') from error


def parse(message: bytes) -> dict[str, bytes | int]:
    """A tensorflow.Example: Features in field 1, of entries in field 1 of a name (1) and values (2) of one kind.

    Values are a list in field 1: of bytes (kind 1) or of packed integers (kind 3).
    """
    record = {}
    ((_, features),) = _fields(memoryview(message))
    for _, entry in _fields(features):
        named = dict(_fields(entry))
        ((kind, values),) = _fields(named[2])
        ((_, value),) = _fields(values)
        record[bytes(named[1]).decode()] = bytes(value) if kind == 1 else _varint(value, 0)[0]  # integers are packed
    return record


def _fields(message: memoryview) -> Iterator[tuple[int, memoryview | int]]:
    """Number and content of each field. ValueError: one of another kind than the builders write, or cut short."""
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        value, at = _varint(message, at)
        if key & 7 == _BYTES:
            value, at = message[at : at + value], at + value
        elif key & 7 != _NUMBER:
            raise ValueError(f'a field of wire type {key & 7}')
        yield key >> 3, value
    if at != len(message):
        raise ValueError('a message that is cut short')


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    """An integer of 7 bits a byte, the lowest first, and where the next begins."""
    value, shift = 0, 0
    while True:
        byte = message[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at
